import { useState } from "preact/hooks";
import type { Vector } from "../api/types";
import { capabilities } from "../frame/server";
import { vectors } from "../frame/vectors";
import { ChoiceField, OptionalNumber } from "../ui/fields";
import { NumberField } from "../ui/NumberField";
import { ConditionFields } from "./ConditionFields";
import {
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
  return (
    <details class="more">
      <summary>{summaryOf(control, vector)}</summary>
      <div class="stack">
        <ChoiceField
          label="Operation"
          value={control.operation}
          options={((capabilities.value?.operations ?? ["add"]) as Operation[]).map(
            (name) => [name, OPERATION_WORDS[name] ?? name] as const,
          )}
          onChange={(operation) => set({ operation })}
        />
        <OperationFields control={control} set={set} />
        <LayerField control={control} set={set} />
        {control.operation === "add" && control.layers !== "recommended" && (
          <label class="row">
            <input
              type="checkbox"
              checked={control.shareDose}
              onChange={(event) => set({ shareDose: event.currentTarget.checked })}
            />
            Share the dose of the recommended layers
          </label>
        )}
        <ChoiceField
          label="Tokens"
          value={control.tokens}
          options={TOKEN_WORDS}
          onChange={(tokens) => set({ tokens })}
        />
        {capabilities.value?.token_scopes === false && !control.role && !control.tokenIds ? (
          <NoTokenChoice />
        ) : (
          <TokenChoice control={control} set={set} />
        )}
        <OptionalNumber
          label="Let it go to zero over this many tokens (empty: constant)"
          value={control.endsAfter}
          step={1}
          min={1}
          onChange={(endsAfter) => set({ endsAfter })}
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
  if (control.operation === "clamp")
    return (
      <div class="row">
        <OptionalNumber label="Not below" value={control.low} step={0.1} onChange={(low) => set({ low })} />
        <OptionalNumber label="Not above" value={control.high} step={0.1} onChange={(high) => set({ high })} />
      </div>
    );
  if (control.operation === "rotate")
    return (
      <NumberField
        label="Degrees toward the vector"
        value={control.degrees}
        step={5}
        min={-180}
        max={180}
        onChange={(degrees) => set({ degrees })}
      />
    );
  if (control.operation === "replace")
    return (
      <ChoiceField
        label="Replaced by"
        value={control.to ?? ""}
        options={[
          ["", "Choose a vector"],
          ...(vectors.value ?? [])
            .filter((one) => one.name !== control.vector)
            .map((one) => [one.name, one.name] as const),
        ]}
        onChange={(to) => set({ to: to || null })}
      />
    );
  return null;
}

function LayerField({ control, set }: Omit<Props, "vector">) {
  const [text, setText] = useState(layerText(control.layers));
  const own = control.layers !== "recommended" && control.layers !== "all";
  const wrong = own && parseLayers(text) === null;
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
            aria-invalid={wrong}
            onInput={(event) => {
              setText(event.currentTarget.value);
              set({ layers: parseLayers(event.currentTarget.value) ?? [] });
            }}
          />
        </label>
      )}
    </div>
  );
}

function NoTokenChoice() {
  return <span class="small muted">The engine of this server cannot choose tokens by role or by id.</span>;
}

/** Among the tokens above: those of one role, and those with given ids. */
function TokenChoice({ control, set }: Omit<Props, "vector">) {
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
          onChange={(event) => {
            const ids = event.currentTarget.value.match(/\d+/g)?.map(Number) ?? [];
            set({ tokenIds: ids.length > 0 ? ids : null });
          }}
        />
      </label>
    </div>
  );
}
