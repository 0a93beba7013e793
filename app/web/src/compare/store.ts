import { computed, signal } from "@preact/signals";
import { api } from "../api/client";
import type { Concept, Vector } from "../api/types";
import { limit, typicalNorms } from "../frame/server";
import { vectorByName, vectorNamed } from "../frame/vectors";
import { fullScale } from "../maths/scales";
import { controlFor, layersOf } from "./controls";
import {
  type CompareBody,
  change,
  changeControl,
  compareBody,
  type Draft,
  draft,
  newSeed,
  readersOf,
  sweepBody,
} from "./draft";
import { instructionFor } from "./instruction";
import type { Shade } from "./panes";
import { allScores } from "./readback";
import { ComparisonRun } from "./run";

export const comparison = new ComparisonRun();
export const sweep = new ComparisonRun();

export const shade = signal<Shade>("difference");
export const sampleIndex = signal(0);

/** The starter concepts, for the words of their two poles. */
export const concepts = signal<readonly Concept[]>([]);

export async function loadConcepts(): Promise<void> {
  if (concepts.value.length > 0) return;
  const { data } = await api.GET("/v1/concepts");
  concepts.value = data?.data ?? [];
}

/** The vector whose readout is shown. */
export const reader = computed(() => readersOf(draft.value)[0] ?? null);

/** The instruction of the prompt-only arm: as written, else made from the vectors. */
export const instruction = computed(
  () => draft.value.instruction ?? instructionFor(draft.value.controls, vectorByName.value, concepts.value),
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
const drafts = new WeakMap<CompareBody, Draft>();

/** The draft with which the shown panes were asked; null before the first run. */
export const askedDraft = computed(() => (comparison.asked.value && drafts.get(comparison.asked.value)) ?? null);

export function run(): void {
  if (draftProblem.value !== null) return;
  sampleIndex.value = 0;
  const body = compareBody(draft.value, instruction.value);
  drafts.set(body, draft.value);
  void comparison.start(body);
}

export function reroll(): void {
  if (draftProblem.value !== null) return; // the seed stays that of the shown answers
  change({ seed: newSeed() });
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
  void sweep.start(sweepBody(draft.value, sweepMultiples()));
}
