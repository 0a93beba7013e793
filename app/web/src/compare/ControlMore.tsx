import { useState } from "preact/hooks";
import type { Vector } from "../api/types";
import { capabilities } from "../core/server";
import { vectors } from "../core/vectors";
import { Check, ChoiceField, NumberField, named, OptionalNumber, partsOf } from "../ui/fields";
import {
  type Condition,
  type Control,
  layerText,
  OPERATION_WORDS,
  type Operation,
  parseLayers,
  ROLE_WORDS,
  TOKEN_WORDS,
} from "./controls";

const LAYERS = { recommended: "recommended", all: "all", own: "these:" } as const;

interface Props {
  control: Control;
  vector: Vector | undefined;
  set: (part: Partial<Control>) => void;
}

/** Operation, layers, tokens, schedule and condition of one vector, folded away until they are wanted. */
export function ControlMore({ control, vector, set }: Props) {
  const field = partsOf(control, set);
  const operations = ((capabilities.value?.operations ?? ["add"]) as Operation[]).map(
    (name) => [name, OPERATION_WORDS[name] ?? name] as const,
  );
  return (
    <details class="more">
      <summary>{summaryOf(control, vector)}</summary>
      <div class="stack">
        <ChoiceField label="Operation" options={operations} {...field("operation")} />
        <OperationFields control={control} set={set} />
        <LayerField control={control} set={set} />
        {control.operation === "add" && control.layers !== "recommended" && (
          <Check {...field("shareDose")}>Share the dose of the recommended layers</Check>
        )}
        <ChoiceField label="Tokens" options={TOKEN_WORDS} {...field("tokens")} />
        {capabilities.value?.token_scopes === false && !control.role && !control.tokenIds ? (
          <span class="small muted">The engine of this server cannot choose tokens by role or by id.</span>
        ) : (
          <TokenChoice control={control} set={set} />
        )}
        <OptionalNumber
          label="Let it go to zero over this many tokens (empty: constant)"
          step={1}
          min={1}
          {...field("endsAfter")}
        />
        <ConditionFields control={control} set={set} />
      </div>
    </details>
  );
}

function summaryOf(control: Control, vector: Vector | undefined): string {
  const layers =
    control.layers === "recommended"
      ? `layer ${vector?.recommended?.layers.join(", ") ?? "recommended"}`
      : control.layers === "all"
        ? "all layers"
        : `layers ${layerText(control.layers)}`;
  const narrowed = control.role || control.tokenIds ? "some tokens" : "";
  return [control.operation, layers, TOKEN_WORDS[control.tokens], narrowed, control.when ? "with a condition" : ""]
    .filter(Boolean)
    .join(" · ");
}

function OperationFields({ control, set }: Omit<Props, "vector">) {
  const field = partsOf(control, set);
  if (control.operation === "clamp")
    return (
      <div class="row">
        <OptionalNumber label="Not below" step={0.1} {...field("low")} />
        <OptionalNumber label="Not above" step={0.1} {...field("high")} />
      </div>
    );
  if (control.operation === "rotate")
    return <NumberField label="Degrees toward the vector" step={5} min={-180} max={180} {...field("degrees")} />;
  if (control.operation !== "replace") return null;
  const others = named(vectors.value).filter(([name]) => name !== control.vector);
  return (
    <ChoiceField
      label="Replaced by"
      value={control.to ?? ""}
      options={[["", "Choose a vector"], ...others]}
      onChange={(to) => set({ to: to || null })}
    />
  );
}

function LayerField({ control, set }: Omit<Props, "vector">) {
  const [text, setText] = useState(layerText(control.layers));
  const own = control.layers !== "recommended" && control.layers !== "all";
  const type = (written: string) => {
    setText(written);
    set({ layers: parseLayers(written) ?? [] });
  };
  return (
    <div class="row">
      <ChoiceField
        label="Layers"
        value={own ? "own" : (control.layers as "recommended" | "all")}
        options={LAYERS}
        onChange={(kind) => set({ layers: kind === "own" ? (parseLayers(text) ?? []) : kind })}
      />
      {own && (
        <label class="field">
          <span>12, 14 or 10-15</span>
          <input
            type="text"
            inputMode="numeric"
            size={10}
            value={text}
            aria-invalid={parseLayers(text) === null}
            onInput={(event) => type(event.currentTarget.value)}
          />
        </label>
      )}
    </div>
  );
}

/** Among the tokens above: those of one role, and those with given ids. */
function TokenChoice({ control, set }: Omit<Props, "vector">) {
  const take = (text: string) => {
    const ids = text.match(/\d+/g)?.map(Number) ?? [];
    set({ tokenIds: ids.length > 0 ? ids : null });
  };
  return (
    <div class="row">
      <ChoiceField
        label="Of"
        value={control.role ?? ""}
        options={{ "": "all messages", ...ROLE_WORDS }}
        onChange={(role) => set({ role: role || null })}
      />
      <label class="field">
        <span>Only token ids (empty: all)</span>
        <input
          type="text"
          inputMode="numeric"
          size={10}
          value={control.tokenIds?.join(", ") ?? ""}
          onChange={(event) => take(event.currentTarget.value)}
        />
      </label>
    </div>
  );
}

const AT_WORDS = {
  prompt: "the end of the prompt",
  prompt_mean: "the prompt on average",
  token: "each token",
} as const;
const SIDES = { above: "above", below: "below" } as const;

/** The condition under which a vector acts: a score above or below a bound. */
function ConditionFields({ control, set }: { control: Control; set: (part: Partial<Control>) => void }) {
  const { when, vector } = control;
  const begin: Condition = { vector, side: "above", bound: 0, at: "prompt" };
  return (
    <fieldset class="stack plain">
      <Check value={when !== null} onChange={(on) => set({ when: on ? begin : null })}>
        Only when a condition holds
      </Check>
      {when && <ConditionRow when={when} change={(part) => set({ when: { ...when, ...part } })} />}
    </fieldset>
  );
}

function ConditionRow({ when, change }: { when: Condition; change: (part: Partial<Condition>) => void }) {
  const field = partsOf(when, change);
  return (
    <div class="row">
      <ChoiceField label="Score of" options={named(vectors.value)} {...field("vector")} />
      <ChoiceField label="in" options={AT_WORDS} {...field("at")} />
      <ChoiceField label="is" options={SIDES} {...field("side")} />
      <NumberField label="bound" min={-1000} max={1000} step={0.1} {...field("bound")} />
    </div>
  );
}
