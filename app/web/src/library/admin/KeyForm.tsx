import { useState } from "preact/hooks";
import { apiKey } from "../../api/key";
import type { KeyRequest } from "../../api/types";
import { Button } from "../../ui/Button";
import { ChoiceField, OptionalNumber, TextField } from "../../ui/fields";
import { ErrorNote } from "../../ui/Note";
import { createKey, keyActions } from "./store";
import { expiry, OWN_STEERING, type OwnSteering, SCOPE_WORDS, SCOPES, type Scope } from "./words";

/** Days until a key ends; the server refuses it from then on. */
const LIFETIMES = { "0": "until it is revoked", "30": "30 days", "90": "90 days", "365": "a year" } as const;

interface Fields {
  name: string;
  scopes: readonly Scope[];
  namespace: string;
  days: keyof typeof LIFETIMES;
  requests: number | null;
  dose: number | null;
  own: OwnSteering;
}

const EMPTY: Fields = {
  name: "",
  scopes: ["generate", "read"],
  namespace: "shared",
  days: "0",
  requests: null,
  dose: null,
  own: "any",
};

function requestOf(fields: Fields): KeyRequest {
  return {
    name: fields.name,
    scopes: [...fields.scopes],
    namespace: fields.namespace.trim() || "shared",
    expires_at: expiry(Number(fields.days)),
    limits: {
      own_steering: fields.own,
      ...(fields.requests === null ? {} : { requests_per_minute: fields.requests }),
      ...(fields.dose === null ? {} : { max_relative_dose: fields.dose }),
    },
  };
}

/** Makes a key. What was typed stays when the server refuses it. `known`: how many keys there are. */
export function KeyForm({ known }: { known: number }) {
  const first = known === 0 && apiKey.value === null;
  const [fields, setFields] = useState<Fields>({ ...EMPTY, scopes: first ? ["admin"] : EMPTY.scopes });
  const set = (part: Partial<Fields>) => setFields((before) => ({ ...before, ...part }));
  const save = async (event: Event) => {
    event.preventDefault();
    const made = await createKey(requestOf(fields));
    if (made) setFields((now) => (now === fields ? EMPTY : now)); // the next one may be typed already
  };
  return (
    <form class="stack" aria-label="New key" onSubmit={(event) => void save(event)}>
      <h3>Make a key</h3>
      <div class="fields">
        <TextField label="Name of its owner" value={fields.name} onInput={(name) => set({ name })} />
        <TextField label="Namespace" value={fields.namespace} onInput={(namespace) => set({ namespace })} />
        <ChoiceField label="Valid" value={fields.days} options={LIFETIMES} onChange={(days) => set({ days })} />
      </div>
      <Scopes chosen={fields.scopes} onChange={(scopes) => set({ scopes })} />
      <details class="more">
        <summary>Limits</summary>
        <Limits fields={fields} set={set} />
      </details>
      <div class="row">
        <Button submit disabled={keyActions.busy.value || fields.name.trim() === "" || fields.scopes.length === 0}>
          Make the key
        </Button>
      </div>
      <ErrorNote error={keyActions.errorAt("form")} />
    </form>
  );
}

function Scopes({ chosen, onChange }: { chosen: readonly Scope[]; onChange: (scopes: Scope[]) => void }) {
  return (
    <fieldset class="plain scopes" aria-label="Scopes">
      {SCOPES.map((scope) => (
        <label key={scope} class="row">
          <input
            type="checkbox"
            checked={chosen.includes(scope)}
            onChange={(event) =>
              onChange(SCOPES.filter((one) => (one === scope ? event.currentTarget.checked : chosen.includes(one))))
            }
          />
          <span>{SCOPE_WORDS[scope]}</span>
        </label>
      ))}
    </fieldset>
  );
}

function Limits({ fields, set }: { fields: Fields; set: (part: Partial<Fields>) => void }) {
  return (
    <div class="fields">
      <OptionalNumber
        label="Requests a minute"
        value={fields.requests}
        step={1}
        min={1}
        placeholder="no limit"
        onChange={(requests) => set({ requests })}
      />
      <OptionalNumber
        label="Largest relative dose"
        value={fields.dose}
        step={0.01}
        min={0.01}
        placeholder="no limit"
        onChange={(dose) => set({ dose })}
      />
      <ChoiceField label="May steer" value={fields.own} options={OWN_STEERING} onChange={(own) => set({ own })} />
    </div>
  );
}
