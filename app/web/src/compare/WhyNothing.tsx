import type { AppliedIntervention, Vector } from "../api/client";
import { plainName, vectorNamed } from "../core/server";
import { atChance, isShown } from "../maths/strength";
import { Button } from "../ui/parts";
import type { Control } from "./controls";
import { change, changeControl, draft } from "./draft";
import { shiftWords } from "./readback";
import type { Pane } from "./run";
import { reader, run } from "./store";

/** Appears when steering did not show: what may be the reason, each with a button that changes it. */
export function WhyNothing({ steered }: { steered: Pane }) {
  const name = reader.value;
  if (!nothingMoved(steered, name)) return null;
  const { controls, overall } = draft.value;
  const reasons = reasonsFor(steered, controls, overall);
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
            {reason.remedy && <Button label={REMEDIES[reason.remedy].label} onClick={() => apply(reason)} />}
          </li>
        ))}
      </ul>
    </section>
  );
}

/** What a reason offers to change, and the words of its button. */
const REMEDIES = {
  "reset-overall": { label: "Set it to 1", part: () => change({ overall: 1 }) },
  stronger: { label: "Double the strength", part: ({ strength }: Control) => ({ strength: strength * 2 }) },
  "recommended-layers": { label: "Use the recommended layers", part: () => ({ layers: "recommended" as const }) },
  "no-condition": { label: "Remove the condition", part: () => ({ when: null }) },
  "switch-on": { label: "Switch it on", part: () => ({ on: true }) },
};

function apply({ remedy, control }: Reason): void {
  const found = draft.value.controls.find((one) => one.id === control);
  if (remedy === "reset-overall") REMEDIES[remedy].part();
  else if (found && remedy) changeControl(found.id, REMEDIES[remedy].part(found));
  run();
}

export type Reason = { text: string; remedy: keyof typeof REMEDIES | null; control: number | null };
/** A relative dose below which steering seldom shows. */
const SMALL_DOSE = 0.03;

const isUnchanged = ({ against }: Pane): boolean =>
  against?.first_divergence.every((position) => position === null) ?? false;

/** Whether the steered text is the plain text, or reads no differently. */
export function nothingMoved(steered: Pane, reader: string | null): boolean {
  const against = steered.against;
  if (!against) return false;
  if (isUnchanged(steered)) return true;
  const [low, high] = (reader !== null && against.readout_shift[reader]?.interval) || [];
  return low != null && high != null && low <= 0 && high >= 0;
}

/** Says why steering may not have shown, each reason with what to change. */
export function reasonsFor(steered: Pane, controls: readonly Control[], overall: number, find = vectorNamed): Reason[] {
  const zero: Reason[] = overall === 0 ? [{ text: "The overall strength is 0.", remedy: "reset-overall", control: null }] : []; // biome-ignore format: one line
  const own = controls.flatMap((control) => {
    const applied = steered.steering?.applied.find((one) => plainName(one.vector) === plainName(control.vector));
    return reasonsOf(control, applied, find(control.vector));
  });
  return [...zero, ...own];
}

function reasonsOf(control: Control, applied: AppliedIntervention | undefined, vector: Vector | undefined): Reason[] {
  const { vector: name, on, operation, layers, strength, when, id } = control;
  const reason = (text: string, remedy: Reason["remedy"] = null) => ({ text, remedy, control: id });
  if (!on) return [reason(`${name} is switched off.`, "switch-on")];
  const reasons: Reason[] = [];
  if (applied && !applied.fired && when)
    reasons.push(reason(`The condition of ${name} was never true.`, "no-condition"));
  const dose = applied ? Math.max(0, ...Object.values(applied.relative_dose).map((value) => value ?? 0)) : SMALL_DOSE;
  const small = `The dose of ${name} is small: it changes the residual stream by ${(100 * dose).toFixed(1)} %.`;
  if (dose < SMALL_DOSE && applied?.fired && operation === "add") reasons.push(reason(small, "stronger"));
  if (layers !== "recommended") reasons.push(reason(`${name} acts at layers of your choice.`, "recommended-layers"));
  if (vector && isShown(vector, strength) === false)
    reasons.push(reason(`The card of ${name} does not show that it steers this way.`));
  if (vector && atChance(vector)) reasons.push(reason(`${name} is not shown to read its concept better than chance.`));
  return reasons;
}
