import { useState } from "preact/hooks";
import { api, dataOf } from "../../api/client";
import type { CompareAnswer, Policy } from "../../api/types";
import { type Intervention, interventions, shortly } from "../../compare/controls";
import { draft } from "../../compare/draft";
import { Query } from "../../core/query";
import { ChoiceField, OptionalNumber, partsOf, TextField } from "../../ui/fields";
import { Button, ErrorNote, Form, LoadNote, Panel } from "../../ui/parts";
import * as admin from "./store";

/** What holds for all traffic: steering that no request can switch off, and limits of what requests may steer with. */
export function PolicyPanel() {
  const now = admin.policy.data.value;
  const busy = admin.policyActions.busy.value;
  return (
    <Panel title="Policy">
      <p class="small muted">
        Holds for all traffic, whatever a request says. Only a key with the scope admin sets it.
      </p>
      {admin.refusal.value && <NoPermission />}
      <LoadNote what="policy" query={admin.policy} again={admin.loadAdmin} />
      {now && <Mandatory now={now} />}
      {now && <Limits limits={now.limits} />}
      {admin.isBroken(admin.policy.error.value) && (
        <div class="row">
          <Button label="Remove the policy" kind="danger" disabled={busy} onClick={() => void admin.removePolicy()} />
        </div>
      )}
      <ErrorNote error={admin.policyActions.errorAt("removal")} />
    </Panel>
  );
}

/** Says that the key of this tab is not enough, in the words of the server. */
export function NoPermission() {
  return (
    <p class="note plain">
      <span>Not with this key: {admin.refusal.value}</span>
      <span class="muted">Another key can be given at the top right.</span>
    </p>
  );
}

function Mandatory({ now }: { now: Policy }) {
  const current = interventions(draft.value.controls, draft.value.overall);
  const list = now.mandatory as unknown as Intervention[];
  const busy = admin.policyActions.busy.value;
  const set = (change: (list: readonly Intervention[]) => readonly Intervention[]) =>
    void admin.editPolicy("mandatory", (policy) => ({
      ...policy,
      mandatory: change(policy.mandatory as never) as never,
    }));
  return (
    <section class="stack" aria-label="Mandatory steering">
      <h3>Mandatory steering</h3>
      {list.length === 0 && (
        <p class="muted">None. What is added here acts in every answer, after the request's own.</p>
      )}
      <ul class="stack">
        {list.map((one, index) => (
          <li key={`${index} ${one.vector}`} class="row between">
            <span>{shortly(one)}</span>
            <Button
              label="Remove"
              hidden={` ${one.vector}`}
              kind="quiet"
              disabled={busy}
              onClick={() => set((all) => admin.without(all, one))}
            />
          </li>
        ))}
      </ul>
      <div class="row">
        <Button
          label="Add what Play uses"
          disabled={busy || current.length === 0}
          onClick={() => set((all) => [...all, ...current])}
        />
        <Button
          label="Try it first"
          disabled={trying.busy.value || current.length === 0}
          onClick={() => void trying.ask()}
        />
        {current.length === 0 && <span class="small muted">Play uses no vector at the moment.</span>}
      </div>
      <ErrorNote error={admin.policyActions.errorAt("mandatory") ?? trying.error.value} />
      {trying.data.value?.map(([words, text]) => (
        <figure key={words}>
          <figcaption class="small muted">{words}</figcaption>
          <q dir="auto">{text}</q>
        </figure>
      ))}
    </section>
  );
}

/** What Play's prompt is answered under the policy as it is, and with what Play uses added; nothing is stored. */
const trying = new Query(async (signal) => {
  const { prompt, seed, sampling, controls, overall } = draft.value;
  const { max_tokens, temperature } = sampling;
  const arms = [
    { name: "now", steering: [] },
    { name: "then", steering: interventions(controls, overall) as never },
  ];
  const body = { messages: [{ role: "user" as const, content: prompt }], arms, baseline: "now", seed, max_tokens, temperature }; // biome-ignore format: one line
  const answer = await dataOf<CompareAnswer>(api.POST("/v1/compare", { body, signal }));
  const texts = answer.arms.map(({ choices, error }) => error?.message ?? choices[0]?.text ?? "");
  return [
    [`Now: ${prompt}`, texts[0]],
    ["With what Play uses for everybody", texts[1]],
  ] as const;
});

/** The limits to be set. What is typed counts until others hold; the form itself stays, and with it the place of the keyboard. */
function Limits({ limits }: { limits: Policy["limits"] }) {
  const now = JSON.stringify(limits);
  const [typed, setTyped] = useState<{ over: string; fields: LimitFields } | null>(null);
  const fields = typed?.over === now ? typed.fields : fieldsOf(limits);
  const field = partsOf(fields, (part) => setTyped({ over: now, fields: { ...fields, ...part } }));
  const save = () => admin.editPolicy("limits", (policy) => ({ ...policy, limits: limitsOf(fields) }));
  const dose = { label: "Largest relative dose", step: 0.01, min: 0.01, placeholder: "no limit" };
  return (
    <Form label="Limits of steering" onSend={save}>
      <h3>Limits of what requests ask for</h3>
      <p class="muted">Now: {admin.limitWords(limits)}.</p>
      <div class="fields">
        <ChoiceField label="Requests may steer" options={admin.OWN_STEERING} {...field("own")} />
        <OptionalNumber {...dose} {...field("dose")} />
        <TextField label="Only these vectors" placeholder="any" {...field("names")} />
      </div>
      <div class="row">
        <Button label="Set the limits" submit disabled={admin.policyActions.busy.value} />
      </div>
      <ErrorNote error={admin.policyActions.errorAt("limits")} />
    </Form>
  );
}

type LimitFields = ReturnType<typeof fieldsOf>;

function fieldsOf({ own_steering: own = "any", max_relative_dose: dose = null, vectors }: Policy["limits"]) {
  return { own, dose, names: vectors?.join(", ") ?? "" };
}

function limitsOf({ own, dose, names }: LimitFields): Policy["limits"] {
  const vectors = names.split(/[\s,]+/).filter(Boolean);
  const bound = dose === null ? {} : { max_relative_dose: dose };
  return { own_steering: own, ...bound, ...(vectors.length === 0 ? {} : { vectors }) };
}
