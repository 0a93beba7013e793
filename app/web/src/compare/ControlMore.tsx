import { useState } from "preact/hooks";
import type { Vector } from "../api/types";
import { capabilities } from "../core/server";
import { vectors } from "../core/vectors";
import { Check, ChoiceField, NumberField, named, OptionalNumber, partsOf } from "../ui/fields";
import { More } from "../ui/parts";
import * as controls from "./controls";

const LAYERS = { recommended: "recommended", all: "all", own: "these:" } as const;

interface Props {
  control: controls.Control;
  set: (part: Partial<controls.Control>) => void;
}

/** Operation, layers, tokens, schedule and condition of one vector, folded away until they are wanted. */
export function ControlMore({ control, vector, set }: Props & { vector: Vector | undefined }) {
  const field = partsOf(control, set);
  const known = (capabilities.value?.operations ?? ["add"]) as controls.Operation[];
  const operations = known.map((name) => [name, controls.OPERATION_WORDS[name] ?? name] as const);
  const some = control.role ?? control.tokenIds ?? control.phase;
  const shared = control.operation === "add" && control.layers !== "recommended";
  const fading = { label: "Let it go to zero over this many tokens (empty: constant)", step: 1, min: 1 };
  return (
    <More summary={summaryOf(control, vector)}>
      <ChoiceField label="Operation" options={operations} {...field("operation")} />
      <OperationFields control={control} set={set} />
      <LayerField control={control} set={set} />
      <PlaceFields control={control} set={set} />
      {Object.keys(vector?.kl ?? {}).length > 0 && control.operation === "add" && (
        <ChoiceField
          label="Strength in"
          options={controls.UNIT_WORDS}
          value={control.unit}
          onChange={(unit) => set({ unit, strength: Math.sign(control.strength || 1) * (unit === "kl" ? 0.7 : 1) })}
        />
      )}
      {shared && <Check {...field("shareDose")}>Share the dose of the recommended layers</Check>}
      <ChoiceField label="Tokens" options={controls.TOKEN_WORDS} {...field("tokens")} />
      {capabilities.value?.token_scopes === false && !some ? (
        <span class="small muted">The engine of this server cannot choose tokens by role or by id.</span>
      ) : (
        <TokenChoice control={control} set={set} />
      )}
      <OptionalNumber {...fading} {...field("endsAfter")} />
      <ConditionFields control={control} set={set} />
    </More>
  );
}

function summaryOf({ layers, ...control }: controls.Control, vector: Vector | undefined): string {
  const own = layers === "all" ? "all layers" : `layers ${controls.layerText(layers)}`;
  return [
    control.operation,
    control.hook !== "residual" && controls.HOOK_WORDS[control.hook],
    layers === "recommended" ? `layer ${vector?.recommended?.layers.join(", ") ?? "recommended"}` : own,
    controls.TOKEN_WORDS[control.tokens],
    (control.role || control.tokenIds || control.phase) && "some tokens",
    control.when && "with a condition",
  ]
    .filter(Boolean)
    .join(" · ");
}

function OperationFields({ control, set }: Props) {
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
  const options: [string, string][] = [["", "Choose a vector"], ...others];
  return (
    <ChoiceField
      label="Replaced by"
      value={control.to ?? ""}
      options={options}
      onChange={(to) => set({ to: to || null })}
    />
  );
}

function LayerField({ control, set }: Props) {
  const [text, setText] = useState(controls.layerText(control.layers));
  const own = control.layers !== "recommended" && control.layers !== "all";
  const type = (written: string) => {
    setText(written);
    set({ layers: controls.parseLayers(written) ?? [] });
  };
  return (
    <div class="row">
      <ChoiceField
        label="Layers"
        value={own ? "own" : (control.layers as "recommended" | "all")}
        options={LAYERS}
        onChange={(kind) => set({ layers: kind === "own" ? (controls.parseLayers(text) ?? []) : kind })}
      />
      {own && (
        <label class="field">
          <span>12, 14 or 10-15</span>
          <input
            type="text"
            inputMode="numeric"
            size={10}
            value={text}
            aria-invalid={controls.parseLayers(text) === null}
            onInput={(event) => type(event.currentTarget.value)}
          />
        </label>
      )}
    </div>
  );
}

/** Where in the block it acts, as far as the model has such places; of attention one head may be ablated in place of the vector. */
function PlaceFields({ control, set }: Props) {
  const field = partsOf(control, set);
  const { hooks = [], head_count: heads = 0 } = capabilities.value?.model ?? {};
  if (hooks.length < 2) return null;
  const options = hooks.map((hook) => [hook, controls.HOOK_WORDS[hook]] as const);
  const of = { min: 0, max: heads - 1, step: 1, placeholder: "all along the vector" };
  return (
    <div class="row">
      <ChoiceField label="Where in the block" options={options} {...field("hook")} />
      {heads > 0 && control.operation === "ablate" && control.hook === "attention" && (
        <OptionalNumber label="Only this head, without the vector" {...of} {...field("head")} />
      )}
    </div>
  );
}

/** Among the tokens above: those of one role, those of one part of the answer, and those with given ids. */
function TokenChoice({ control, set }: Props) {
  const take = (text: string) => {
    const ids = text.match(/\d+/g)?.map(Number) ?? [];
    set({ tokenIds: ids.length > 0 ? ids : null });
  };
  const all = (words: string) => ({ "": words }) as const;
  return (
    <div class="row">
      <ChoiceField
        label="Of"
        value={control.role ?? ""}
        options={{ ...all("all messages"), ...controls.ROLE_WORDS }}
        onChange={(role) => set({ role: role || null })}
      />
      <ChoiceField
        label="In the phase"
        value={control.phase ?? ""}
        options={{ ...all("any"), ...controls.PHASE_WORDS }}
        onChange={(phase) => set({ phase: phase || null })}
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
function ConditionFields({ control: { when, vector }, set }: Props) {
  const begin: controls.Condition = { vector, side: "above", bound: 0, at: "prompt" };
  const field = partsOf(when ?? begin, (part) => set({ when: { ...(when ?? begin), ...part } }));
  return (
    <fieldset class="stack plain">
      <Check value={when !== null} onChange={(on) => set({ when: on ? begin : null })}>
        Only when a condition holds
      </Check>
      {when && (
        <div class="row">
          <ChoiceField label="Score of" options={named(vectors.value)} {...field("vector")} />
          <ChoiceField label="in" options={AT_WORDS} {...field("at")} />
          <ChoiceField label="is" options={SIDES} {...field("side")} />
          <NumberField label="bound" min={-1000} max={1000} step={0.1} {...field("bound")} />
        </div>
      )}
    </fieldset>
  );
}
