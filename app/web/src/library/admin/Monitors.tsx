import { useEffect, useState } from "preact/hooks";
import type { Monitor, MonitorDetail, MonitorSpec } from "../../api/types";
import { repeat } from "../../core/query";
import { vectors } from "../../core/vectors";
import { plain, signed } from "../../maths/scales";
import { Button } from "../../ui/Button";
import { ChoiceField, NumberField, named, partsOf, TextField } from "../../ui/fields";
import { ErrorNote } from "../../ui/Note";
import { Scroll } from "../../ui/Table";
import { LoadNote } from "../LoadNote";
import { NoPermission } from "./Policy";
import {
  barsOf,
  counts,
  detail,
  editPolicy,
  isBroken,
  monitors,
  opened,
  openMonitor,
  policy,
  policyActions,
  raisedWhen,
  refusal,
} from "./store";

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
      {!broken && <LoadNote what="what the monitors counted" query={counts} again={() => counts.load()} />}
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
    <Scroll label="Table of monitors">
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
    </Scroll>
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

const SIDES = { above: "above", below: "below" } as const;
const PLACES = { generated: "the answer", prompt: "the prompt" } as const;
const ACTIONS = { count: "count it", flag: "count and flag the answer", stop: "end the answer" } as const;

interface Fields {
  name: string;
  vector: string;
  side: keyof typeof SIDES;
  bound: number;
  at: keyof typeof PLACES;
  action: keyof typeof ACTIONS;
}

const EMPTY: Fields = { name: "", vector: "", side: "above", bound: 0.5, at: "generated", action: "count" };

/** Adds a monitor to the policy. What was typed stays when the server refuses it. */
function MonitorForm() {
  const [fields, setFields] = useState(EMPTY);
  const field = partsOf(fields, (part) => setFields((before) => ({ ...before, ...part })));
  const vector = fields.vector || vectors.value?.[0]?.name || "";
  const add = async (event: Event) => {
    event.preventDefault();
    const { name, side, bound, at, action } = fields;
    const spec = { name, vector, [side]: bound, at, action } as MonitorSpec;
    const added = await editPolicy("monitor form", (now) => ({ ...now, monitors: [...now.monitors, spec] }));
    if (added) setFields((now) => (now === fields ? EMPTY : now)); // the next one may be typed already
  };
  if (vector === "") return <p class="small muted">A monitor needs a vector, and the library is empty.</p>;
  return (
    <form class="stack" aria-label="New monitor" onSubmit={(event) => void add(event)}>
      <h3>Add a monitor</h3>
      <div class="fields">
        <TextField
          label="Name"
          pattern="[a-z0-9][a-z0-9._\-]{0,63}"
          title="Small letters, digits, dots and dashes"
          {...field("name")}
        />
        <ChoiceField label="Vector" options={named(vectors.value)} {...field("vector")} value={vector} />
        <ChoiceField label="Raised" options={SIDES} {...field("side")} />
        <NumberField label="Bound" min={-100} max={100} step={0.1} {...field("bound")} />
        <ChoiceField label="In" options={PLACES} {...field("at")} />
        <ChoiceField label="Then" options={ACTIONS} {...field("action")} />
      </div>
      <div class="row">
        <Button label="Add the monitor" submit disabled={policyActions.busy.value || fields.name === ""} />
      </div>
      <ErrorNote error={policyActions.errorAt("monitor form")} />
    </form>
  );
}
