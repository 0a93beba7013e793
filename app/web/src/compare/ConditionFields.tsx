import { vectors } from "../frame/vectors";
import { ChoiceField } from "../ui/fields";
import { NumberField } from "../ui/NumberField";
import type { Condition, ConditionAt, Control } from "./controls";

const AT_WORDS: Readonly<Record<ConditionAt, string>> = {
  prompt: "the end of the prompt",
  prompt_mean: "the prompt on average",
  token: "each token",
};

const SIDES = { above: "above", below: "below" } as const;

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
      <ChoiceField
        label="Score of"
        value={when.vector}
        options={(vectors.value ?? []).map((one) => [one.name, one.name] as const)}
        onChange={(vector) => change({ vector })}
      />
      <ChoiceField label="in" value={when.at} options={AT_WORDS} onChange={(at) => change({ at })} />
      <ChoiceField label="is" value={when.side} options={SIDES} onChange={(side) => change({ side })} />
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
