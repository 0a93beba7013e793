import { useEffect, useState } from "preact/hooks";
import { api, type CompareAnswer, dataOf, type MonitorDetail, type Policy, type Schemas } from "../../api/client";
import { type Intervention, interventions, shortly } from "../../compare/controls";
import { draft } from "../../compare/draft";
import { Query, repeat } from "../../core/query";
import { vectors } from "../../core/server";
import { given } from "../../core/state";
import { plain, signed } from "../../maths/scales";
import { ChoiceField, NumberField, named, OptionalNumber, partsOf, TextField } from "../../ui/fields";
import { Button, ErrorNote, Form, List, LoadNote, Panel, Table } from "../../ui/parts";
import { hints, monitorActions, monitorPlaces, noVectors, ownSteering, sides } from "../../words.json";
import * as admin from "./store";

/** What holds for all traffic: steering that no request can switch off, and limits of what requests may steer with. */
export function PolicyPanel() {
  const now = admin.policy.data.value;
  const busy = admin.policyActions.busy.value;
  return (
    <Panel title="Policy">
      <p class="small muted">{hints.policy}</p>
      {admin.refusal.value && <NoPermission />}
      <LoadNote what="policy" query={admin.policy} again={admin.loadAdmin} />
      {now && <Mandatory now={now} />}
      {now && <Limits limits={now.limits} />}
      {admin.isBroken(admin.policy.error.value) && (
        <Button label="Remove the policy" kind="danger" disabled={busy} onClick={admin.removePolicy} />
      )}
      <ErrorNote error={admin.policyActions.errorAt("removal")} />
    </Panel>
  );
}

/** Says that the key of this tab is not enough, in the words of the server. */
export const NoPermission = () => (
  <p class="note plain">
    <span>Not with this key: {admin.refusal.value}</span>
    <span class="muted">Another key can be given at the top right.</span>
  </p>
);

function Mandatory({ now }: { now: Policy }) {
  const current = interventions(draft.value.controls, draft.value.overall);
  const list = now.mandatory as unknown as Intervention[];
  const busy = admin.policyActions.busy.value;
  const none = current.length === 0;
  const tried = trying.data.value;
  const set = (change: (list: readonly Intervention[]) => readonly Intervention[]) =>
    admin.editPolicy("mandatory", (policy) => ({ ...policy, mandatory: change(policy.mandatory as never) as never }));
  const remove = (one: Intervention) => () => set((all) => admin.without(all, one));
  const entry = (one: Intervention, index: number) => (
    <li key={`${index} ${one.vector}`} class="row between">
      <span>{shortly(one)}</span>
      <Button label="Remove" hidden={` ${one.vector}`} kind="quiet" disabled={busy} onClick={remove(one)} />
    </li>
  );
  return (
    <section class="stack" aria-label="Mandatory steering">
      <h3>Mandatory steering</h3>
      <List of={list} none={hints.noMandatory} row={entry} />
      <div class="row">
        <Button label="Add what Play uses" disabled={busy || none} onClick={() => set((all) => [...all, ...current])} />
        <Button label="Try it first" disabled={trying.busy.value || none} onClick={() => trying.ask()} />
        {none && <span class="small muted">Play uses no vector at the moment.</span>}
      </div>
      <ErrorNote error={admin.policyActions.errorAt("mandatory") ?? trying.error.value} />
      {tried?.answers.map(([words, text]) => (
        <figure key={words} class={tried.of === triedOf() ? "" : "stale"}>
          <figcaption class="small muted">{words}</figcaption>
          <q dir="auto">{text}</q>
        </figure>
      ))}
    </section>
  );
}

function tryBody() {
  const { prompt, seed, sampling, controls, overall } = draft.value;
  const { max_tokens, temperature } = sampling;
  const arms = [{ name: "now", steering: [] }, { name: "then", steering: interventions(controls, overall) as never }]; // biome-ignore format: one line
  return { messages: [{ role: "user" as const, content: prompt }], arms, baseline: "now", seed, max_tokens, temperature }; // biome-ignore format: one line
}

/** What the answers depend on: they are dim once that is another. */
const triedOf = () => JSON.stringify([tryBody(), admin.policy.data.value?.mandatory]);

/** What Play's prompt is answered under the policy as it is, and with what Play uses added; nothing is stored. */
const trying = new Query(async (signal) => {
  const [of, body] = [triedOf(), tryBody()];
  const answer = await dataOf<CompareAnswer>(api.POST("/v1/compare", { body, signal }));
  const [added, prompt] = [(body.arms[1]?.steering ?? []).map(shortly).join(", "), body.messages[0]?.content];
  const answers = answer.arms.map(({ name, choices, error }) => {
    const words = name === "now" ? `Without it: ${prompt}` : `With ${added} for everybody`;
    return [words, error?.message ?? choices[0]?.text ?? ""] as const;
  });
  return { of, answers };
});

/** The limits to be set. What is typed counts until others hold; the form itself stays, and with it the place of the keyboard. */
function Limits({ limits }: { limits: Policy["limits"] }) {
  const now = JSON.stringify(limits);
  const { own_steering = "any", max_relative_dose: most = null } = limits;
  const begin = { own: own_steering, dose: most, names: limits.vectors ? limits.vectors.join(", ") || noVectors : "" };
  const [typed, setTyped] = useState<{ over: string; fields: typeof begin } | null>(null);
  const fields = typed?.over === now ? typed.fields : begin;
  const field = partsOf(fields, (part) => setTyped({ over: now, fields: { ...fields, ...part } }));
  const save = () =>
    admin.editPolicy("limits", (policy) => {
      const next = { ...policy.limits }; // what was not changed here is as the server has it
      if (fields.own !== begin.own) next.own_steering = fields.own;
      if (fields.dose !== begin.dose) next.max_relative_dose = fields.dose;
      if (fields.names !== begin.names) next.vectors = fields.names.trim() === noVectors ? [] : fields.names.match(/[^\s,]+/g); // biome-ignore format: one line
      return { ...policy, limits: given(next) };
    });
  const state = { disabled: admin.policyActions.busy.value, error: admin.policyActions.errorAt("limits") };
  const dose = { label: "Largest relative dose", step: 0.01, min: 0.01, placeholder: "no limit" };
  return (
    <Form label="Limits of steering" onSend={save} send="Set the limits" {...state}>
      <h3>Limits of what requests ask for</h3>
      <p class="muted">Now: {admin.limitWords(limits)}.</p>
      <div class="fields">
        <ChoiceField label="Requests may steer" options={ownSteering} {...field("own")} />
        <OptionalNumber {...dose} {...field("dose")} />
        <TextField label="Only these vectors" placeholder={`any, or ${noVectors}`} {...field("names")} />
      </div>
    </Form>
  );
}

const REFRESH_SECONDS = 2;
const HEAD = ["Monitor", "Raised when", "Then", "Scores", "Raised", "Answers", "Mean", ""];

/** Standing tests on all traffic, with what they counted until now. */
export function Monitors() {
  const any = admin.monitors.value.length > 0;
  const broken = admin.isBroken(admin.counts.error.value); // the panel of the policy says so
  const busy = admin.policyActions.busy.value;
  const rows = admin.monitors.value.map((monitor) => {
    const { name, action, scores, raised, answers, mean } = monitor;
    const shown = admin.opened.value === name;
    const remove = () => admin.setMonitors("monitor table", (all) => all.filter((one) => one.name !== name));
    const open = () => admin.openMonitor(shown ? null : name);
    return [
      <Button key="open" label={name} kind="quiet" pressed={shown} onClick={open} />,
      admin.raisedWhen(monitor),
      action,
      scores,
      raised,
      answers,
      signed(mean),
      <Button key="remove" label="Remove" hidden={` ${name}`} kind="quiet" disabled={busy} onClick={remove} />,
    ];
  });
  useEffect(() => (any ? repeat(REFRESH_SECONDS, () => admin.counts.load()) : undefined), [any]);
  return (
    <Panel title="Monitors">
      <p class="small muted">{hints.monitors}</p>
      {admin.refusal.value && <NoPermission />}
      {!broken && <LoadNote what="what the monitors counted" query={admin.counts} />}
      {admin.counts.data.value && !any && <p class="muted">None yet.</p>}
      {any && <Table label="Table of monitors" head={HEAD} rows={rows} />}
      <ErrorNote error={admin.policyActions.errorAt("monitor table")} />
      {admin.detail.value && <Scores monitor={admin.detail.value} />}
      {admin.policy.data.value && <MonitorForm />}
    </Panel>
  );
}

const SHOWN = 5;

function Scores({ monitor: { name, lowest, highest, layer, latest, distribution } }: { monitor: MonitorDetail }) {
  const bars = admin.barsOf(distribution.edges, distribution.counts);
  const range = `From ${plain(lowest)} to ${plain(highest)}, at layer ${layer}; the poles of the vector lie at −0.5 and +0.5.`;
  return (
    <section class="stack" aria-label={`Scores of ${name}`}>
      <h3>Scores of {name}</h3>
      <p class="small muted">{bars.length === 0 ? "No score yet: nothing was generated since it was set." : range}</p>
      <ul class="bars small" aria-label="Distribution of the scores">
        {bars.map(({ label, share, count }) => (
          <li key={label}>
            <span class="number">{label}</span>
            <span class="bar" aria-hidden="true">
              <span style={{ width: `${100 * share}%` }} />
            </span>
            <span class="number">{count}</span>
          </li>
        ))}
      </ul>
      {latest.length > 0 && <h3>Latest raises</h3>}
      <ul class="small" aria-label="Latest raises">
        {latest.slice(0, SHOWN).map(({ request_id, at, score, token }) => (
          <li key={`${request_id} ${at}`} class="row between">
            <span class="number">{request_id}</span>
            <span class="number">
              {signed(score)} {token === null ? "in the prompt" : `at token ${token}`},{" "}
              {new Date(at).toLocaleTimeString()}
            </span>
          </li>
        ))}
      </ul>
    </section>
  );
}

const EMPTY = { name: "", vector: "", side: "above" as keyof typeof sides, bound: 0.5, at: "generated" as keyof typeof monitorPlaces, action: "count" as keyof typeof monitorActions }; // biome-ignore format: one line

/** Adds a monitor to the policy. What was typed stays when the server refuses it. */
function MonitorForm() {
  const [fields, setFields] = useState(EMPTY);
  const field = partsOf(fields, (part) => setFields((before) => ({ ...before, ...part })));
  const vector = fields.vector || vectors.value?.[0]?.name || "";
  const { busy } = admin.policyActions;
  const add = async () => {
    const { side, bound, ...rest } = fields;
    const spec = { ...rest, vector, [side]: bound } as Schemas["MonitorSpec"];
    const added = await admin.setMonitors("monitor form", (all) => [...all, spec]);
    if (added) setFields((now) => (now === fields ? EMPTY : now)); // the next one may be typed already
  };
  if (vector === "") return <p class="small muted">A monitor needs a vector, and the library is empty.</p>;
  const name = { pattern: "[a-z0-9][a-z0-9._\\-]{0,63}", title: "Small letters, digits, dots and dashes" };
  const state = { disabled: busy.value || fields.name === "", error: admin.policyActions.errorAt("monitor form") };
  return (
    <Form label="New monitor" onSend={add} send="Add the monitor" {...state}>
      <h3>Add a monitor</h3>
      <div class="fields">
        <TextField label="Name" {...name} {...field("name")} />
        <ChoiceField label="Vector" options={named(vectors.value)} {...field("vector")} value={vector} />
        <ChoiceField label="Raised" options={sides} {...field("side")} />
        <NumberField label="Bound" min={-100} max={100} step={0.1} {...field("bound")} />
        <ChoiceField label="In" options={monitorPlaces} {...field("at")} />
        <ChoiceField label="Then" options={monitorActions} {...field("action")} />
      </div>
    </Form>
  );
}
