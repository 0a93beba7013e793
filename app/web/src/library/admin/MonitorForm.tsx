import { useState } from "preact/hooks";
import type { MonitorSpec } from "../../api/types";
import { vectors } from "../../frame/vectors";
import { Button } from "../../ui/Button";
import { ChoiceField, TextField } from "../../ui/fields";
import { ErrorNote } from "../../ui/Note";
import { NumberField } from "../../ui/NumberField";
import { editPolicy, policyActions } from "./store";

const SIDES = { above: "above", below: "below" } as const;
const PLACES = { generated: "the answer", prompt: "the prompt" } as const;
const ACTIONS = {
  count: "count it",
  flag: "count and flag the answer",
  stop: "end the answer",
} as const;

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
export function MonitorForm() {
  const [fields, setFields] = useState(EMPTY);
  const set = (part: Partial<Fields>) => setFields((before) => ({ ...before, ...part }));
  const names = (vectors.value ?? []).map((vector) => vector.name);
  const vector = fields.vector || names[0] || "";
  const add = async (event: Event) => {
    event.preventDefault();
    const { name, side, bound, at, action } = fields;
    const spec = { name, vector, [side]: bound, at, action } as MonitorSpec;
    const added = await editPolicy("monitor form", (now) => ({ ...now, monitors: [...now.monitors, spec] }));
    if (added) setFields((now) => (now === fields ? EMPTY : now)); // the next one may be typed already
  };
  if (names.length === 0) return <p class="small muted">A monitor needs a vector, and the library is empty.</p>;
  return (
    <form class="stack" aria-label="New monitor" onSubmit={(event) => void add(event)}>
      <h3>Add a monitor</h3>
      <div class="fields">
        <TextField
          label="Name"
          value={fields.name}
          pattern="[a-z0-9][a-z0-9._\-]{0,63}"
          title="Small letters, digits, dots and dashes"
          onInput={(name) => set({ name })}
        />
        <ChoiceField
          label="Vector"
          value={vector}
          options={Object.fromEntries(names.map((name) => [name, name]))}
          onChange={(next) => set({ vector: next })}
        />
        <ChoiceField label="Raised" value={fields.side} options={SIDES} onChange={(side) => set({ side })} />
        <Bound value={fields.bound} onChange={(bound) => set({ bound })} />
        <ChoiceField label="In" value={fields.at} options={PLACES} onChange={(at) => set({ at })} />
        <ChoiceField label="Then" value={fields.action} options={ACTIONS} onChange={(action) => set({ action })} />
      </div>
      <div class="row">
        <Button submit disabled={policyActions.busy.value || fields.name === ""}>
          Add the monitor
        </Button>
      </div>
      <ErrorNote error={policyActions.errorAt("monitor form")} />
    </form>
  );
}

function Bound({ value, onChange }: { value: number; onChange: (value: number) => void }) {
  return <NumberField label="Bound" value={value} min={-100} max={100} step={0.1} onChange={onChange} />;
}
