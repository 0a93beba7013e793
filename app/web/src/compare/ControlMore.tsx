import { useState } from "preact/hooks";
import type { Vector } from "../api/types";
import { capabilities } from "../frame/server";
import { vectors } from "../frame/vectors";
import { ConditionFields } from "./ConditionFields";
import {
  type Control,
  layerText,
  OPERATION_WORDS,
  type Operation,
  parseLayers,
  ROLE_WORDS,
  type Role,
  TOKEN_WORDS,
  type Tokens,
} from "./controls";

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
        <label class="field">
          <span>Operation</span>
          <select
            value={control.operation}
            onChange={(event) => set({ operation: event.currentTarget.value as Operation })}
          >
            {(capabilities.value?.operations ?? ["add"]).map((name) => (
              <option key={name} value={name}>
                {OPERATION_WORDS[name as Operation] ?? name}
              </option>
            ))}
          </select>
        </label>
        <OperationFields control={control} set={set} />
        <LayerField control={control} set={set} />
        <label class="field">
          <span>Tokens</span>
          <select value={control.tokens} onChange={(event) => set({ tokens: event.currentTarget.value as Tokens })}>
            {Object.entries(TOKEN_WORDS).map(([name, words]) => (
              <option key={name} value={name}>
                {words}
              </option>
            ))}
          </select>
        </label>
        <TokenChoice control={control} set={set} />
        <OptionalNumber
          label="Let it go to zero over this many tokens (empty: constant)"
          value={control.endsAfter}
          step={1}
          onChange={(tokens) => set({ endsAfter: tokens === null ? null : Math.max(1, Math.round(tokens)) })}
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
      <OptionalNumber
        label="Degrees toward the vector"
        value={control.degrees}
        step={5}
        onChange={(degrees) => set({ degrees: degrees ?? 0 })}
      />
    );
  if (control.operation === "replace")
    return (
      <label class="field">
        <span>Replaced by</span>
        <select value={control.to ?? ""} onChange={(event) => set({ to: event.currentTarget.value || null })}>
          <option value="">Choose a vector</option>
          {(vectors.value ?? [])
            .filter((one) => one.name !== control.vector)
            .map((one) => (
              <option key={one.name}>{one.name}</option>
            ))}
        </select>
      </label>
    );
  return null;
}

function LayerField({ control, set }: Omit<Props, "vector">) {
  const [text, setText] = useState(layerText(control.layers));
  const own = control.layers !== "recommended" && control.layers !== "all";
  const wrong = own && parseLayers(text) === null;
  return (
    <div class="row">
      <label class="field">
        <span>Layers</span>
        <select
          value={own ? "own" : (control.layers as string)}
          onChange={(event) => {
            const kind = event.currentTarget.value;
            set({ layers: kind === "own" ? (parseLayers(text) ?? []) : (kind as "recommended" | "all") });
          }}
        >
          <option value="recommended">recommended</option>
          <option value="all">all</option>
          <option value="own">these:</option>
        </select>
      </label>
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

/** Among the tokens above: those of one role, and those with given ids. */
function TokenChoice({ control, set }: Omit<Props, "vector">) {
  return (
    <div class="row">
      <label class="field">
        <span>Of</span>
        <select
          value={control.role ?? ""}
          onChange={(event) => set({ role: (event.currentTarget.value || null) as Role | null })}
        >
          <option value="">all messages</option>
          {Object.entries(ROLE_WORDS).map(([name, words]) => (
            <option key={name} value={name}>
              {words}
            </option>
          ))}
        </select>
      </label>
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

interface NumberProps {
  label: string;
  value: number | null;
  step: number;
  onChange: (value: number | null) => void;
}

/** A number that may be absent. */
function OptionalNumber({ label, value, step, onChange }: NumberProps) {
  return (
    <label class="field">
      <span>{label}</span>
      <input
        type="number"
        step={step}
        value={value ?? ""}
        onInput={(event) => {
          const next = event.currentTarget.valueAsNumber;
          onChange(Number.isFinite(next) ? next : null);
        }}
      />
    </label>
  );
}
