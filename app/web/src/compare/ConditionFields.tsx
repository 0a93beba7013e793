import { vectors } from "../frame/vectors";
import { NumberField } from "../ui/NumberField";
import type { Condition, ConditionAt, Control } from "./controls";

const AT_WORDS: Readonly<Record<ConditionAt, string>> = {
  prompt: "the end of the prompt",
  prompt_mean: "the prompt on average",
  token: "each token",
};

/** The condition under which a vector acts: a score above or below a bound. */
export function ConditionFields({ control, set }: { control: Control; set: (part: Partial<Control>) => void }) {
  const { when } = control;
  return (
    <fieldset class="stack plain">
      <label class="row">
        <input
          type="checkbox"
          checked={when !== null}
          onChange={(event) =>
            set({
              when: event.currentTarget.checked
                ? { vector: control.vector, side: "above", bound: 0, at: "prompt" }
                : null,
            })
          }
        />
        Only when a condition holds
      </label>
      {when && <ConditionRow when={when} change={(part) => set({ when: { ...when, ...part } })} />}
    </fieldset>
  );
}

function ConditionRow({ when, change }: { when: Condition; change: (part: Partial<Condition>) => void }) {
  return (
    <div class="row">
      <label class="field">
        <span>Score of</span>
        <select value={when.vector} onChange={(event) => change({ vector: event.currentTarget.value })}>
          {(vectors.value ?? []).map((one) => (
            <option key={one.name}>{one.name}</option>
          ))}
        </select>
      </label>
      <label class="field">
        <span>in</span>
        <select value={when.at} onChange={(event) => change({ at: event.currentTarget.value as ConditionAt })}>
          {Object.entries(AT_WORDS).map(([at, words]) => (
            <option key={at} value={at}>
              {words}
            </option>
          ))}
        </select>
      </label>
      <label class="field">
        <span>is</span>
        <select
          value={when.side}
          onChange={(event) => change({ side: event.currentTarget.value as "above" | "below" })}
        >
          <option>above</option>
          <option>below</option>
        </select>
      </label>
      <NumberField
        label="bound"
        value={when.bound}
        min={-1000}
        max={1000}
        step={0.1}
        onChange={(bound) => change({ bound })}
      />
    </div>
  );
}
