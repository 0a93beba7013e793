import { useState } from "preact/hooks";
import type { Vector } from "../api/client";
import { capabilities, vectors } from "../core/server";
import { Check, ChoiceField, NumberField, named, OptionalNumber, optional, partsOf, TextField } from "../ui/fields";
import { More } from "../ui/parts";
import * as words from "../words.json";
import { type Condition, type Control, layerText, parseLayers } from "./controls";

type Props = { control: Control; set: (part: Partial<Control>) => void };

/** Operation, layers, tokens, schedule and condition of one vector, folded away until they are wanted. */
export function ControlMore({ control, vector, set }: Props & { vector: Vector | undefined }) {
  const field = partsOf(control, set);
  const { when, layers } = control;
  const [written, setText] = useState(layerText(layers));
  const own = layers !== "recommended" && layers !== "all";
  const parsed = parseLayers(written) ?? [];
  const text = JSON.stringify(parsed) === JSON.stringify(layers) ? written : layerText(layers); // a run before may have others
  const choose = (kind: keyof typeof words.layers) => set({ layers: kind === "own" ? parsed : kind });
  const invalid = parseLayers(text) === null;
  const type = (typed: string) => {
    setText(typed);
    set({ layers: parseLayers(typed) ?? [] });
  };
  const begin: Condition = { vector: control.vector, side: "above", bound: 0, at: "prompt" };
  const condition = partsOf(when ?? begin, (part) => set({ when: { ...(when ?? begin), ...part } }));
  const known = (capabilities.value?.operations ?? ["add"]) as Control["operation"][];
  const operations = known.map((name) => [name, words.operations[name] ?? name] as const);
  const some = control.role ?? control.tokenIds ?? control.phase;
  const shared = control.operation === "add" && control.layers !== "recommended";
  const fading = { label: "Let it go to zero over this many tokens (empty: constant)", step: 1, min: 1 };
  const { hooks = [], head_count: heads = 0 } = capabilities.value?.model ?? {};
  const places = hooks.map((hook) => [hook, words.hooks[hook]] as const);
  const head = { min: 0, max: heads - 1, step: 1, placeholder: "all along the vector" };
  const ids = control.tokenIds?.join(", ") ?? "";
  const takeIds = (text: string) => {
    const ids = text.match(/\d+/g)?.map(Number) ?? [];
    set({ tokenIds: ids.length > 0 ? ids : null });
  };
  const calibrated = control.operation === "add" && Object.keys(vector?.kl ?? {}).length > 0;
  const count = (unit: Control["unit"]) =>
    set({ unit, strength: Math.sign(control.strength || 1) * (unit === "kl" ? 0.7 : 1) });
  return (
    <More summary={summaryOf(control, vector)}>
      <ChoiceField label="Operation" options={operations} {...field("operation")} />
      <OperationFields control={control} set={set} />
      <div class="row">
        <ChoiceField label="Layers" value={own ? "own" : layers} options={words.layers} onChange={choose} />
        {own && <TextField label="12, 14 or 10-15" {...NUMBERS} value={text} aria-invalid={invalid} onChange={type} />}
      </div>
      {hooks.length > 1 && (
        <div class="row">
          <ChoiceField label="Where in the block" options={places} {...field("hook")} />
          {heads > 0 && control.operation === "ablate" && control.hook === "attention" && (
            <OptionalNumber label="Only this head, without the vector" {...head} {...field("head")} />
          )}
        </div>
      )}
      {calibrated && <ChoiceField label="Strength in" options={words.units} value={control.unit} onChange={count} />}
      {shared && <Check {...field("shareDose")}>Share the dose of the recommended layers</Check>}
      <ChoiceField label="Tokens" options={words.tokens} {...field("tokens")} />
      {capabilities.value?.token_scopes === false && !some ? (
        <span class="small muted">The engine of this server cannot choose tokens by role or by id.</span>
      ) : (
        <div class="row">
          <ChoiceField label="Of" options={{ "": "all messages", ...words.roles }} {...optional(field("role"))} />
          <ChoiceField label="In the phase" options={{ "": "any", ...words.phases }} {...optional(field("phase"))} />
          <TextField label="Only token ids (empty: all)" {...NUMBERS} value={ids} late onChange={takeIds} />
        </div>
      )}
      <OptionalNumber {...fading} {...field("endsAfter")} />
      <fieldset class="stack plain">
        <Check value={when !== null} onChange={(on) => set({ when: on ? begin : null })}>
          Only when a condition holds
        </Check>
        {when && (
          <div class="row">
            <ChoiceField label="Score of" options={named(vectors.value)} {...condition("vector")} />
            <ChoiceField label="in" options={words.conditionAt} {...condition("at")} />
            <ChoiceField label="is" options={words.sides} {...condition("side")} />
            <NumberField label="bound" min={-1000} max={1000} step={0.1} {...condition("bound")} />
          </div>
        )}
      </fieldset>
    </More>
  );
}

function summaryOf({ layers, ...control }: Control, vector: Vector | undefined): string {
  const own = layers === "all" ? "all layers" : `layers ${layerText(layers)}`;
  const parts = [
    control.operation,
    control.hook !== "residual" && words.hooks[control.hook],
    layers === "recommended" ? `layer ${vector?.recommended?.layers.join(", ") ?? "recommended"}` : own,
    words.tokens[control.tokens],
    (control.role || control.tokenIds || control.phase) && "some tokens",
    control.when && "with a condition",
  ];
  return parts.filter(Boolean).join(" · ");
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
  return <ChoiceField label="Replaced by" options={[["", "Choose a vector"], ...others]} {...optional(field("to"))} />;
}

const NUMBERS = { inputMode: "numeric", size: 10 } as const;
