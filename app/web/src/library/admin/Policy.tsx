import { useState } from "preact/hooks";
import type { Policy } from "../../api/types";
import { type Intervention, interventions, shortly } from "../../compare/controls";
import { draft } from "../../compare/draft";
import { Button } from "../../ui/Button";
import { ChoiceField, OptionalNumber, partsOf, TextField } from "../../ui/fields";
import { ErrorNote } from "../../ui/Note";
import { LoadNote } from "../LoadNote";
import {
  editPolicy,
  isBroken,
  limitWords,
  loadAdmin,
  OWN_STEERING,
  type OwnSteering,
  policy,
  policyActions,
  refusal,
  removePolicy,
  without,
} from "./store";

/** What holds for all traffic: steering that no request can switch off, and limits of what requests may steer with. */
export function PolicyPanel() {
  const now = policy.data.value;
  return (
    <section class="panel stack" aria-label="Policy">
      <h2>Policy</h2>
      <p class="small muted">
        Holds for all traffic, whatever a request says. Only a key with the scope admin sets it.
      </p>
      {refusal.value && <NoPermission />}
      <LoadNote what="policy" query={policy} again={loadAdmin} />
      {now && (
        <>
          <Mandatory now={now} />
          <Limits limits={now.limits} />
        </>
      )}
      {isBroken(policy.error.value) && (
        <div class="row">
          <Button
            label="Remove the policy"
            kind="danger"
            disabled={policyActions.busy.value}
            onClick={() => void removePolicy()}
          />
        </div>
      )}
      <ErrorNote error={policyActions.errorAt("removal")} />
    </section>
  );
}

/** Says that the key of this tab is not enough, in the words of the server. */
export function NoPermission() {
  return (
    <p class="note plain">
      <span>Not with this key: {refusal.value}</span>
      <span class="muted">Another key can be given at the top right.</span>
    </p>
  );
}

function Mandatory({ now }: { now: Policy }) {
  const current = interventions(draft.value.controls, draft.value.overall);
  const list = now.mandatory as unknown as Intervention[];
  const setMandatory = (change: (list: readonly Intervention[]) => readonly Intervention[]) =>
    void editPolicy("mandatory", (policy) => ({
      ...policy,
      mandatory: change(policy.mandatory as unknown as Intervention[]) as never,
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
              kind="quiet"
              disabled={policyActions.busy.value}
              onClick={() => setMandatory((all) => without(all, one))}
            >
              Remove<span class="visually-hidden"> {one.vector}</span>
            </Button>
          </li>
        ))}
      </ul>
      <div class="row">
        <Button
          disabled={policyActions.busy.value || current.length === 0}
          onClick={() => setMandatory((all) => [...all, ...current])}
        >
          Add what Play uses
        </Button>
        {current.length === 0 && <span class="small muted">Play uses no vector at the moment.</span>}
      </div>
      <ErrorNote error={policyActions.errorAt("mandatory")} />
    </section>
  );
}

interface LimitFields {
  own: OwnSteering;
  dose: number | null;
  names: string;
}

/** The limits to be set. What is typed counts until others hold; the form itself stays, and with it the place of the keyboard. */
function Limits({ limits }: { limits: Policy["limits"] }) {
  const now = JSON.stringify(limits);
  const [typed, setTyped] = useState<{ over: string; fields: LimitFields } | null>(null);
  const fields = typed?.over === now ? typed.fields : fieldsOf(limits);
  const field = partsOf(fields, (part) => setTyped({ over: now, fields: { ...fields, ...part } }));
  const save = (event: Event) => {
    event.preventDefault();
    void editPolicy("limits", (policy) => ({ ...policy, limits: limitsOf(fields) }));
  };
  return (
    <form class="stack" aria-label="Limits of steering" onSubmit={save}>
      <h3>Limits of what requests ask for</h3>
      <p class="muted">Now: {limitWords(limits)}.</p>
      <div class="fields">
        <ChoiceField label="Requests may steer" options={OWN_STEERING} {...field("own")} />
        <OptionalNumber
          label="Largest relative dose"
          step={0.01}
          min={0.01}
          placeholder="no limit"
          {...field("dose")}
        />
        <TextField label="Only these vectors" placeholder="any" {...field("names")} />
      </div>
      <div class="row">
        <Button label="Set the limits" submit disabled={policyActions.busy.value} />
      </div>
      <ErrorNote error={policyActions.errorAt("limits")} />
    </form>
  );
}

function fieldsOf(limits: Policy["limits"]): LimitFields {
  const { own_steering: own = "any", max_relative_dose: dose, vectors } = limits;
  return { own, dose: dose ?? null, names: vectors?.join(", ") ?? "" };
}

function limitsOf({ own, dose, names }: LimitFields): Policy["limits"] {
  const vectors = names.split(/[\s,]+/).filter(Boolean);
  return {
    own_steering: own,
    ...(dose === null ? {} : { max_relative_dose: dose }),
    ...(vectors.length === 0 ? {} : { vectors }),
  };
}
