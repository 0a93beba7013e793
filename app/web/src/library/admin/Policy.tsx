import { useState } from "preact/hooks";
import type { Policy } from "../../api/types";
import { type Intervention, interventions } from "../../compare/controls";
import { draft } from "../../compare/draft";
import { ChoiceField, OptionalNumber, TextField } from "../../ui/fields";
import { ErrorNote } from "../../ui/Note";
import { LoadNote } from "../LoadNote";
import { shortly } from "../Profiles";
import { editPolicy, isBroken, loadAdmin, policy, policyActions, refusal, removePolicy, without } from "./store";
import { limitWords, OWN_STEERING, type OwnSteering } from "./words";

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
      <LoadNote what="policy" loaded={{ error: policy.error, load: loadAdmin }} />
      {now && (
        <>
          <Mandatory now={now} />
          <Limits key={JSON.stringify(now.limits)} limits={now.limits} />
        </>
      )}
      {isBroken(policy.error.value) && (
        <div class="row">
          <button type="button" class="danger" disabled={policyActions.busy.value} onClick={() => void removePolicy()}>
            Remove the policy
          </button>
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
            <button
              type="button"
              class="quiet"
              disabled={policyActions.busy.value}
              onClick={() => setMandatory((all) => without(all, one))}
            >
              Remove<span class="visually-hidden"> {one.vector}</span>
            </button>
          </li>
        ))}
      </ul>
      <div class="row">
        <button
          type="button"
          disabled={policyActions.busy.value || current.length === 0}
          onClick={() => setMandatory((all) => [...all, ...current])}
        >
          Add what Compare uses
        </button>
        {current.length === 0 && <span class="small muted">Compare uses no vector at the moment.</span>}
      </div>
      <ErrorNote error={policyActions.errorAt("mandatory")} />
    </section>
  );
}

function Limits({ limits }: { limits: Policy["limits"] }) {
  const [own, setOwn] = useState<OwnSteering>(limits.own_steering ?? "any");
  const [dose, setDose] = useState(limits.max_relative_dose ?? null);
  const [names, setNames] = useState(limits.vectors?.join(", ") ?? "");
  const save = (event: Event) => {
    event.preventDefault();
    const vectors = names.split(/[\s,]+/).filter(Boolean);
    const next = {
      own_steering: own,
      ...(dose === null ? {} : { max_relative_dose: dose }),
      ...(vectors.length === 0 ? {} : { vectors }),
    };
    void editPolicy("limits", (policy) => ({ ...policy, limits: next }));
  };
  return (
    <form class="stack" aria-label="Limits of steering" onSubmit={save}>
      <h3>Limits of what requests ask for</h3>
      <p class="muted">Now: {limitWords(limits)}.</p>
      <div class="fields">
        <ChoiceField label="Requests may steer" value={own} options={OWN_STEERING} onChange={setOwn} />
        <OptionalNumber
          label="Largest relative dose"
          value={dose}
          step={0.01}
          min={0.01}
          placeholder="no limit"
          onChange={setDose}
        />
        <TextField label="Only these vectors" value={names} placeholder="any" onInput={setNames} />
      </div>
      <div class="row">
        <button type="submit" disabled={policyActions.busy.value}>
          Set the limits
        </button>
      </div>
      <ErrorNote error={policyActions.errorAt("limits")} />
    </form>
  );
}
