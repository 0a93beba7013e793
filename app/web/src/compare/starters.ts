import { computed, signal } from "@preact/signals";
import { beginJob, dismiss, openTasks, tasks } from "../core/jobs";
import { capabilities, concepts, library, vectorByName } from "../core/server";
import { remembered } from "../core/state";
import { announce, type Step } from "../ui/parts";

/** How many starter vectors this tab has begun to make; 0 while none are being made, or are left to make. */
const total = remembered("starters", 0);
const missing = computed(() => (capabilities.value?.concepts ?? []).filter((name) => !vectorByName.value.has(name)));
const sequence = signal(false);
/** The starter vector that is being made, also after a reload of the page; null while none is. */
const current = computed(() => openTasks.value.find(({ about }) => about.kind === "starter") ?? null);

/** How far the making of the starter vectors has come; null while none are being made. */
export const starterProgress = computed<Step | null>(() => {
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
    const task = beginJob({ place: "compare", kind: "starter", vector: concept }, "/v1/vectors/extract", body);
    if (!(await task.end) || task.error.value !== null) break;
    dismiss(task);
    if (index === 0) onFirst();
  }
  sequence.value = false;
  if (startersLeft.value) return;
  total.value = 0;
  announce("The starter vectors were made.");
}

export function leaveStarters(): void {
  total.value = 0;
  for (const task of tasks.value) if (task.about.kind === "starter" && task.ended.value) dismiss(task);
}
