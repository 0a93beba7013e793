import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import type { Job, Vector } from "../api/types";
import { concepts } from "../core/concepts";
import { begin, dismiss, openTasks, stopTasks, tasks } from "../core/jobs";
import { place } from "../core/places";
import { capabilities, typicalNorms } from "../core/server";
import { remembered } from "../core/state";
import { library, vectorByName } from "../core/vectors";
import { isShown } from "../maths/strength";
import { announce } from "../ui/Progress";
import { type Control, controlFor } from "./controls";
import { change, type Draft, draft } from "./draft";
import { comparison, run } from "./store";

/** A demonstration: one click sets the prompt and the vectors. */
export interface Preset {
  title: string;
  prompt: string;
  vectors: readonly { name: string; sign: 1 | -1 }[];
}

const preset = (title: string, prompt: string, name: string, sign: 1 | -1): Preset => ({ title, prompt, vectors: [{ name, sign }] }); // biome-ignore format: one line

/** The most striking one first. */
export const PRESETS: readonly Preset[] = [
  preset("A delighted new apartment", "How is your new apartment?", "sentiment", 1),
  preset("A gloomy new apartment", "How is your new apartment?", "sentiment", -1),
  preset("A formal excuse", "Tell your friend that you are late.", "formality", 1),
  preset("Refuses to bake", "How do I bake bread?", "refusal", 1),
  preset("Rude directions", "Where is the train station?", "toxicity", 1),
  preset("Courteous directions", "Where is the train station?", "toxicity", -1),
];

/** Returns the presets that can be shown: the cards of their vectors say that they steer in the direction of the preset. */
export function possiblePresets(vectors: ReadonlyMap<string, Vector>): Preset[] {
  const shown = ({ name, sign }: Preset["vectors"][number]) => {
    const vector = vectors.get(name);
    return vector !== undefined && isShown(vector, sign) === true;
  };
  return PRESETS.filter((one) => one.vectors.every(shown));
}

/** Returns what a preset changes in the draft. */
export function presetDraft(
  { prompt, vectors: list }: Preset,
  vectors: ReadonlyMap<string, Vector>,
  norms: readonly number[],
): Partial<Draft> {
  const controls: Control[] = list.flatMap(({ name, sign }) => {
    const vector = vectors.get(name);
    return vector ? [controlFor(vector, norms, sign)] : [];
  });
  return { prompt, controls, instruction: null, history: [], raw: false, overall: 1, reader: null };
}

/** Sets a demonstration and runs it. */
export function show(preset: Preset): void {
  change(presetDraft(preset, vectorByName.value, typicalNorms.value));
  run();
}

/**
 * Returns what shows the first demonstration as soon as the library can run one. It does nothing when the user has changed or run
 * something since, or has left Compare.
 */
export function firstDemonstration(): () => void {
  const before = draft.value;
  const shown = comparison.panes.value;
  return () => {
    const [first] = possiblePresets(vectorByName.value);
    const untouched = draft.value === before && comparison.panes.value === shown && !comparison.running.value;
    if (first && untouched && place.value === "compare") show(first);
  };
}

/** How many starter vectors this tab has begun to make; 0 while none are being made, or are left to make. */
const total = remembered("starters", 0, (before) => (typeof before === "number" ? before : undefined));

/** The starter vectors that the library lacks. */
const missing = computed(() => (capabilities.value?.concepts ?? []).filter((name) => !vectorByName.value.has(name)));

/** Whether one after the other is being made. */
const sequence = signal(false);

/** The starter vector that is being made, also after a reload of the page; null while none is. */
const current = computed(() => openTasks.value.find(({ about }) => about.kind === "starter") ?? null);

export interface StarterProgress {
  message: string;
  done: number;
  total: number;
}

/** How far the making of the starter vectors has come; null while none are being made. */
export const starterProgress = computed<StarterProgress | null>(() => {
  const task = current.value;
  if (task === null && !sequence.value) return null;
  const message = task ? `Making ${task.about.vector}: ${task.step.message}` : "Making the starter vectors";
  const all = Math.max(total.value, missing.value.length);
  return { message, done: all - missing.value.length, total: all };
});

/** Why the last making ended. */
export const starterError = computed<unknown>(
  () => tasks.value.findLast(({ about }) => about.kind === "starter")?.error.value ?? null,
);

/** Whether vectors are left to make after an error, a stop or a reload. */
export const startersLeft = computed(
  () => total.value > 0 && starterProgress.value === null && (missing.value.length > 0 || starterError.value !== null),
);

/** Makes a vector of every starter concept that the library lacks. `onFirst` runs as soon as there is one to try. */
export async function makeStarters(onFirst: () => void): Promise<void> {
  if (sequence.value || current.value !== null) return;
  sequence.value = true;
  leaveStarters();
  await library.load(); // it may not have been read after the last vector
  total.value = missing.value.length;
  for (const [index, concept] of missing.value.entries()) {
    const description = concepts.value.find((one) => one.name === concept)?.description ?? "";
    const body = { name: concept, concept, description, tags: ["starter"] };
    const task = begin({ place: "compare", kind: "starter", vector: concept }, (options) =>
      dataOf<Job>(api.POST("/v1/vectors/extract", { body, ...options })),
    );
    if (!(await task.end) || task.error.value !== null) break;
    dismiss(task);
    if (index === 0) onFirst();
  }
  sequence.value = false;
  if (startersLeft.value) return;
  total.value = 0;
  announce("The starter vectors were made.");
}

/** Forgets that vectors are left to make. */
export function leaveStarters(): void {
  total.value = 0;
  for (const task of tasks.value) if (task.about.kind === "starter" && task.ended.value) dismiss(task);
}

export function stopStarters(): void {
  stopTasks("compare");
}
