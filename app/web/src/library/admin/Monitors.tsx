import { useEffect } from "preact/hooks";
import type { Monitor, MonitorDetail } from "../../api/types";
import { plain, signed } from "../../maths/scales";
import { Button } from "../../ui/Button";
import { ErrorNote } from "../../ui/Note";
import { LoadNote } from "../LoadNote";
import { repeat } from "../loaded";
import { MonitorForm } from "./MonitorForm";
import { NoPermission } from "./Policy";
import {
  counts,
  detail,
  editPolicy,
  isBroken,
  monitors,
  opened,
  openMonitor,
  policy,
  policyActions,
  refusal,
} from "./store";
import { barsOf, raisedWhen } from "./words";

const REFRESH_SECONDS = 2;

/** Standing tests on all traffic, with what they counted until now. */
export function Monitors() {
  const any = monitors.value.length > 0;
  const broken = isBroken(counts.error.value); // the panel of the policy says so
  useEffect(() => (any ? repeat(REFRESH_SECONDS, () => counts.load()) : undefined), [any]);
  return (
    <section class="panel stack" aria-label="Monitors">
      <h2>Monitors</h2>
      <p class="small muted">
        A monitor reads a vector in every prompt or answer of all traffic. Counts are of this server process, since the
        policy was set.
      </p>
      {refusal.value && <NoPermission />}
      {!broken && <LoadNote what="what the monitors counted" loaded={counts} />}
      {counts.data.value && !any && <p class="muted">None yet.</p>}
      {any && <MonitorTable />}
      <ErrorNote error={policyActions.errorAt("monitor table")} />
      {detail.value && <Scores monitor={detail.value} />}
      {policy.data.value && <MonitorForm />}
    </section>
  );
}

function MonitorTable() {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard
    <div class="scroll" tabIndex={0} role="region" aria-label="Table of monitors">
      <table class="list counts">
        <thead>
          <tr>
            <th>Monitor</th>
            <th>Raised when</th>
            <th>Then</th>
            <th class="number">Scores</th>
            <th class="number">Raised</th>
            <th class="number">Answers</th>
            <th class="number">Mean</th>
            <td />
          </tr>
        </thead>
        <tbody>
          {monitors.value.map((one) => (
            <MonitorRow key={one.name} monitor={one} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

function MonitorRow({ monitor }: { monitor: Monitor }) {
  const shown = opened.value === monitor.name;
  const remove = () =>
    void editPolicy("monitor table", (now) => ({
      ...now,
      monitors: now.monitors.filter((one) => one.name !== monitor.name),
    }));
  return (
    <tr>
      <th scope="row">
        <button
          type="button"
          class="quiet"
          aria-pressed={shown}
          onClick={() => openMonitor(shown ? null : monitor.name)}
        >
          {monitor.name}
        </button>
      </th>
      <td>{raisedWhen(monitor)}</td>
      <td>{monitor.action}</td>
      <td class="number">{monitor.scores}</td>
      <td class="number">{monitor.raised}</td>
      <td class="number">{monitor.answers}</td>
      <td class="number">{signed(monitor.mean)}</td>
      <td>
        <Button kind="quiet" disabled={policyActions.busy.value} onClick={remove}>
          Remove<span class="visually-hidden"> {monitor.name}</span>
        </Button>
      </td>
    </tr>
  );
}

function Scores({ monitor }: { monitor: MonitorDetail }) {
  const bars = barsOf(monitor.distribution.edges, monitor.distribution.counts);
  return (
    <section class="stack" aria-label={`Scores of ${monitor.name}`}>
      <h3>Scores of {monitor.name}</h3>
      {bars.length === 0 ? (
        <p class="muted">No score yet: nothing was generated since it was set.</p>
      ) : (
        <>
          <p class="small muted">
            From {plain(monitor.lowest)} to {plain(monitor.highest)}, at layer {monitor.layer}; the poles of the vector
            lie at −0.5 and +0.5.
          </p>
          <ul class="bars small" aria-label="Distribution of the scores">
            {bars.map((bar) => (
              <li key={bar.label}>
                <span class="number">{bar.label}</span>
                <span class="bar" aria-hidden="true">
                  <span style={{ width: `${100 * bar.share}%` }} />
                </span>
                <span class="number">{bar.count}</span>
              </li>
            ))}
          </ul>
        </>
      )}
      {monitor.latest.length > 0 && <Latest monitor={monitor} />}
    </section>
  );
}

const SHOWN = 5;

function Latest({ monitor }: { monitor: MonitorDetail }) {
  return (
    <>
      <h3>Latest raises</h3>
      <ul class="small" aria-label="Latest raises">
        {monitor.latest.slice(0, SHOWN).map((one) => (
          <li key={`${one.request_id} ${one.at}`} class="row between">
            <span class="number">{one.request_id}</span>
            <span class="number">
              {signed(one.score)} {one.token === null ? "in the prompt" : `at token ${one.token}`},{" "}
              {new Date(one.at).toLocaleTimeString()}
            </span>
          </li>
        ))}
      </ul>
    </>
  );
}
