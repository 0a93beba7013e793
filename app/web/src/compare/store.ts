import { computed, signal } from "@preact/signals";
import type { Vector } from "../api/types";
import { limit, typicalNorms } from "../core/server";
import { vectorByName, vectorNamed } from "../core/vectors";
import { fullScale } from "../maths/scales";
import { controlFor, instructionFor, layersOf } from "./controls";
import * as drafts from "./draft";
import { type CompareBody, change, changeControl, type Draft, draft } from "./draft";
import { allScores } from "./readback";
import { ComparisonRun, type PaneChoice, type Shade } from "./run";

export const comparison = new ComparisonRun();
export const sweep = new ComparisonRun();

/** How the words are coloured; differences are shown as long as there is no vector to read. */
export const shade = signal<Shade>("reading");
export const sampleIndex = signal(0);

/** Whether each word of an answer is a button that shows its alternatives; else an answer is plain text. */
export const inspecting = signal(false);

/** The vector whose readout is shown. */
export const reader = computed(() => drafts.readersOf(draft.value)[0] ?? null);

/** How the words are coloured now. */
export const shownShade = computed<Shade>(() => (shade.value === "reading" && reader.value === null ? "difference" : shade.value)); // biome-ignore format: one line

/** The instruction of the prompt-only arm: as written, else made from the vectors. */
export const instruction = computed(
  () => draft.value.instruction ?? instructionFor(draft.value.controls, vectorByName.value),
);

/** The score at which a token has its full colour, over all panes, so that they can be compared. */
export const fullReading = computed(() => fullScale(allScores.value, 0.5));

/** Whether every control is something the server can run. */
export const draftProblem = computed<string | null>(() => {
  const { controls, prompt } = draft.value;
  if (prompt === "") return "Write a prompt first.";
  for (const control of controls) {
    if (!control.on) continue;
    const vector = vectorNamed(control.vector);
    if (vectorByName.value.size > 0 && !vector) return `The library has no vector "${control.vector}".`;
    if (control.operation === "replace" && !control.to) return `Choose what replaces ${control.vector}.`;
    if (control.operation === "clamp" && control.low === null && control.high === null)
      return `Give ${control.vector} a lower or an upper bound.`;
    if (vector && layersOf(control, vector).length === 0) return `Choose layers for ${control.vector}.`;
  }
  return null;
});

/** The draft of each request: a request does not distinguish the system prompt from earlier turns. */
const draftOf = new WeakMap<CompareBody, Draft>();

/** The draft with which the shown panes were asked; null before the first run. */
export const askedDraft = computed(() => (comparison.asked.value && draftOf.get(comparison.asked.value)) ?? null);

/** Whether the shown answers are of other settings than those of now. Which vector reads them does not matter. */
export const stale = computed(() => {
  const asked = comparison.asked.value;
  if (asked === null || askedDraft.value === null || comparison.running.value) return false;
  const now = drafts.compareBody(draft.value, instruction.value);
  return JSON.stringify({ ...now, readout: [] }) !== JSON.stringify({ ...asked, readout: [] });
});

export function run(): void {
  if (draftProblem.value !== null) return;
  sampleIndex.value = 0;
  const body = drafts.compareBody(draft.value, instruction.value);
  draftOf.set(body, draft.value);
  void comparison.start(body);
}

/** Makes another answer that of a pane: one that was continued from another word. */
export function takeAnswer(pane: string, choice: number, answer: PaneChoice): void {
  const asked = comparison.asked.value;
  const of = askedDraft.value;
  if (asked === null) return;
  const copy = { ...asked };
  if (of) draftOf.set(copy, of);
  comparison.replace(pane, choice, answer, copy);
}

export function reroll(): void {
  if (draftProblem.value !== null) return; // the seed stays that of the shown answers
  change({ seed: drafts.newSeed() });
  run();
}

export function stopAll(): void {
  comparison.stop();
  sweep.stop();
}

/** Adds a vector to what is steered by. One that is there already stays as it was set, and is switched on. */
export function addVector(vector: Vector, sign = 1): void {
  const known = draft.value.controls.find((control) => control.vector === vector.name);
  if (known) {
    changeControl(known.id, { on: true });
    return;
  }
  change({ controls: [...draft.value.controls, controlFor(vector, typicalNorms.value, sign)] });
}

/** The multiples of a sweep, as many as the server's arms allow. */
export function sweepMultiples(): number[] {
  const all = [-1.5, -1, -0.5, 0, 0.5, 1, 1.5];
  const arms = limit("max_arms", 8);
  return arms >= all.length ? all : [-1, 0, 1].slice(0, Math.max(arms, 1));
}

export function runSweep(): void {
  if (draftProblem.value !== null) return;
  void sweep.start(drafts.sweepBody(draft.value, sweepMultiples()));
}

/**
 * Goes on with the conversation after an answer: the question that was asked and its answer become earlier turns. A prompt that was
 * typed since stays; after a text that is continued, it follows the text.
 */
export function continueFrom(answer: string): void {
  const asked = askedDraft.value;
  if (asked === null) return;
  const { prompt, history, raw } = asked;
  const typed = draft.value.prompt === prompt ? "" : draft.value.prompt;
  if (raw) {
    const answers = comparison.panes.value.flatMap((pane) => pane.choices.map((choice) => choice.text));
    const goneOn = answers.some((one) => typed === prompt + one); // with one of the answers, by an earlier click
    change({ raw, prompt: [prompt + answer, goneOn ? "" : typed].filter(Boolean).join("\n") });
    return;
  }
  const turns = [
    { role: "user" as const, content: prompt },
    { role: "assistant" as const, content: answer },
  ];
  change({ raw, history: [...history, ...turns], prompt: typed });
}
