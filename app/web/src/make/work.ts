import { computed, signal } from "@preact/signals";
import type { Job } from "../api/client";
import { beginJob, jobs, openTasks, taskOf } from "../core/jobs";
import { load } from "../core/server";
import { remembered } from "../core/state";

const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;
export const name = remembered("name", "");
/** Why something in Make could not be done; the failure of a job is that of its task. */
export const error = signal<unknown>(null);
/** The newest job of Make that has not been dismissed. */
export const task = computed(() => taskOf("make"));
/** The kinds of the jobs of Make that run. */
const kinds = computed(() => openTasks.value.map(({ about }) => about).filter((one) => one.place === "make").map(({ kind }) => kind)); // biome-ignore format: one line
/** Whether a vector is being made. */
export const running = computed(() => kinds.value.some((kind) => kind !== "measure"));
export const working = computed(() => kinds.value.length > 0);

/** What is wrong with a name; null where nothing is. */
export const nameProblem = (given: string): string | null =>
  NAME.test(given) ? null : "Give it a name of small letters, digits, dots or dashes.";

/** The full measurement has narrower intervals than the quick one, and more random directions to hold it against. */
const SIZES = {
  quick: { strengths: [-2, -1, 1, 2], random_directions: 1, max_tokens: 32 },
  full: { strengths: [-4, -2, -1, 0.5, 1, 1.5, 2, 3, 4], random_directions: 8, max_tokens: 48 },
} as const;
type Size = keyof typeof SIZES;
/** Prompts, unsteered answers to each, and neutral prompts of a measurement whose request names none. */
const [PROMPTS, UNSTEERED, NEUTRAL] = [16, 4, 8];

/** How many answers a measurement of strengths writes, and how many steps its progress counts: each is written and read. */
export function measureSize(size: Size = "full"): { answers: number; steps: number } {
  const { strengths, random_directions } = SIZES[size];
  const answers = (strengths.length * (1 + random_directions) + UNSTEERED) * PROMPTS;
  return { answers, steps: 2 * answers + NEUTRAL };
}

/** Seconds that a measurement of strengths will take: as earlier ones here did, else at most what writing at the speed of now takes. */
export function measureSeconds(latest: readonly Job[], tokensPerSecond: number | null, size: Size = "full") {
  const { answers, steps } = measureSize(size);
  const before = latest.find((job) => job.kind === "dose_response" && job.status === "succeeded" && (job.progress.total ?? 0) > 0); // biome-ignore format: one line
  if (before) {
    const seconds = (Date.parse(before.updated_at) - Date.parse(before.created_at)) / 1000;
    return (seconds * steps) / (before.progress.total ?? steps);
  }
  return tokensPerSecond ? (answers * SIZES[size].max_tokens) / tokensPerSecond : null;
}

export const measureEstimate = (size: Size): number | null =>
  measureSeconds(jobs.data.value ?? [], load.value?.fastest ?? null, size);

/** Measures at which strengths a vector steers, and stores the result on its card. */
export function measure(vector: string, size: Size = "full"): void {
  const { strengths, ...sampling } = SIZES[size];
  const body = { kind: "dose_response" as const, vector, save: true, strengths: [...strengths], ...sampling };
  beginJob({ place: "make", kind: "measure", vector }, "/v1/evaluations", body);
}
