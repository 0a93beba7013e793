import type { AppliedIntervention, Vector } from "../api/types";
import { vectorNamed } from "../core/vectors";
import { isShown } from "../maths/strength";
import { Button } from "../ui/Button";
import type { Control } from "./controls";
import { change, changeControl, draft } from "./draft";
import type { Pane } from "./run";
import { shiftWords } from "./sentence";
import { reader, run } from "./store";

/** Appears when steering did not show: what may be the reason, each with a button that changes it. */
export function WhyNothing({ steered }: { steered: Pane }) {
  const name = reader.value;
  if (!nothingMoved(steered, name)) return null;
  const { controls, overall } = draft.value;
  const reasons = reasonsFor(steered, controls, overall, vectorNamed);
  const shift = name === null ? undefined : steered.against?.readout_shift[name];
  const title = isUnchanged(steered)
    ? "Steering changed nothing"
    : `No sure effect on ${name}${shift ? ` (Δ ${shiftWords(shift)})` : ""}`;
  return (
    <section class="note notice why" aria-label="Why steering does not show">
      <h3>{title}</h3>
      {reasons.length === 0 && <p>Nothing is unusual. More samples, or another prompt, may tell.</p>}
      <ul class="stack">
        {reasons.map((reason) => (
          <li key={reason.text} class="row">
            <span>{reason.text}</span>
            {reason.remedy && <Button label={reason.label} onClick={() => apply(reason)} />}
          </li>
        ))}
      </ul>
    </section>
  );
}

function apply({ remedy, control }: Reason): void {
  if (remedy === "reset-overall") change({ overall: 1 });
  const found = draft.value.controls.find((one) => one.id === control);
  if (found && remedy === "stronger") changeControl(found.id, { strength: found.strength * 2 });
  if (found && remedy === "recommended-layers") changeControl(found.id, { layers: "recommended" });
  if (found && remedy === "no-condition") changeControl(found.id, { when: null });
  if (found && remedy === "switch-on") changeControl(found.id, { on: true });
  run();
}

export type Remedy = "stronger" | "recommended-layers" | "no-condition" | "switch-on" | "reset-overall";

export interface Reason {
  text: string;
  remedy: Remedy | null;
  label: string;
  control: number | null;
}

/** A relative dose below which steering seldom shows. */
const SMALL_DOSE = 0.03;

/** Whether the steered text is the plain text. */
function isUnchanged({ against }: Pane): boolean {
  return against?.first_divergence.every((position) => position === null) ?? false;
}

/** Whether the steered text is the plain text, or reads no differently. */
export function nothingMoved(steered: Pane, reader: string | null): boolean {
  const against = steered.against;
  if (!against) return false;
  if (isUnchanged(steered)) return true;
  const interval = reader === null ? undefined : against.readout_shift[reader]?.interval;
  if (!interval) return false;
  const [low, high] = interval;
  return typeof low === "number" && typeof high === "number" && low <= 0 && high >= 0;
}

/** Says why steering may not have shown, each reason with what to change. */
export function reasonsFor(
  steered: Pane,
  controls: readonly Control[],
  overall: number,
  vectorNamed: (name: string) => Vector | undefined,
): Reason[] {
  const reasons: Reason[] = [];
  if (overall === 0)
    reasons.push({ text: "The overall strength is 0.", remedy: "reset-overall", label: "Set it to 1", control: null });
  for (const control of controls) {
    if (!control.on) {
      reasons.push(reason(control, `${control.vector} is switched off.`, "switch-on", "Switch it on"));
      continue;
    }
    const applied = steered.steering?.applied.find((one) => one.vector.split("@")[0] === control.vector.split("@")[0]);
    reasons.push(...reasonsOf(control, applied, vectorNamed(control.vector)));
  }
  return reasons;
}

function reasonsOf(control: Control, applied: AppliedIntervention | undefined, vector: Vector | undefined): Reason[] {
  const reasons: Reason[] = [];
  const name = control.vector;
  if (applied && !applied.fired && control.when)
    reasons.push(reason(control, `The condition of ${name} was never true.`, "no-condition", "Remove the condition"));
  const dose = applied ? Math.max(0, ...Object.values(applied.relative_dose).map((value) => value ?? 0)) : null;
  if (dose !== null && dose < SMALL_DOSE && applied?.fired && control.operation === "add") {
    const text = `The dose of ${name} is small: it changes the residual stream by ${(100 * dose).toFixed(1)} %.`;
    reasons.push(reason(control, text, "stronger", "Double the strength"));
  }
  if (control.layers !== "recommended")
    reasons.push(
      reason(control, `${name} acts at layers of your choice.`, "recommended-layers", "Use the recommended layers"),
    );
  if (vector && isShown(vector, control.strength) === false)
    reasons.push(reason(control, `The card of ${name} does not show that it steers this way.`, null, ""));
  if (vector && atChance(vector))
    reasons.push(reason(control, `${name} is not shown to read its concept better than chance.`, null, ""));
  return reasons;
}

function reason(control: Control, text: string, remedy: Remedy | null, label: string): Reason {
  return { text, remedy, label, control: control.id };
}

/** Whether the card's interval at the recommended layers reaches down to chance. */
export function atChance(vector: Vector): boolean {
  const layers = vector.recommended?.layers ?? [];
  const known = layers.map((layer) => vector.quality?.layers[String(layer)]?.auroc_interval?.[0]);
  return known.length > 0 && known.every((low) => typeof low === "number" && low <= 0.5);
}
