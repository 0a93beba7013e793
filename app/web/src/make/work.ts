import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import { isAbort, isRefusal, messageOf } from "../api/errors";
import { apiKey } from "../api/key";
import type { Job } from "../api/types";
import { remembered, textOr } from "../frame/remembered";
import { loadVectors, vectorNamed } from "../frame/vectors";
import { runToEnd, type StartJob } from "../jobs/watch";
import { announce } from "../ui/announce";

export interface Running {
  kind: "extract" | "transfer" | "measure";
  message: string;
  done: number;
  total: number;
}

/** What screen readers read out once a job has succeeded. A failure is an alert. */
const ENDED: Readonly<Record<Running["kind"], string>> = {
  extract: "The vector was found.",
  transfer: "The vector was carried over.",
  measure: "The strengths were measured.",
};

const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;

/** The name of the vector that is made next. */
export const name = remembered("name", "", textOr);
export const running = signal<Running | null>(null);
export const error = signal<unknown>(null);

/** The name of the vector that was made last. */
export const made = signal<string | null>(null);
export const madeVector = computed(() => (made.value === null ? undefined : vectorNamed(made.value)));

/** What is wrong with a name; null where nothing is. */
export function nameProblem(given: string): string | null {
  return NAME.test(given) ? null : "Give it a name of small letters, digits, dots or dashes.";
}

let abort: AbortController | null = null;

/** Runs a job and shows its progress. Returns null where it was stopped or failed; a failure is shown. */
export async function runJob(kind: Running["kind"], start: StartJob): Promise<Job | null> {
  const stopper = new AbortController();
  abort = stopper;
  error.value = null;
  running.value = { kind, message: "Waiting to begin", done: 0, total: 0 };
  try {
    const job = await runToEnd(
      start,
      ({ progress }) => {
        const { message = "", done = 0, total = 0 } = progress;
        running.value = { kind, message, done, total };
      },
      stopper.signal,
    );
    announce(ENDED[kind]);
    return job;
  } catch (failure) {
    if (isAbort(failure)) announce("Stopped.");
    else error.value = failure;
    return null;
  } finally {
    running.value = null;
  }
}

/** Runs a job that stores a vector, and opens its card. */
export async function makeByJob(kind: Running["kind"], vector: string, start: StartJob): Promise<void> {
  const job = await runJob(kind, start);
  if (job !== null) await show(vector);
}

/** Opens the card of a vector that was stored. Where the library cannot be read again, that is shown, and it can be tried again. */
export async function show(vector: string): Promise<void> {
  error.value = null;
  await reload(vector);
  made.value = vector;
}

/** Reads the library again after a vector was stored or measured. A failure is shown. */
export async function reload(vector: string): Promise<void> {
  try {
    await loadVectors();
  } catch (failure) {
    error.value = new Error(`${vector} was stored, but the library could not be read again. ${messageOf(failure)}`);
  }
}

/** Loads a list to choose from. Once it is loaded, a refusal that is shown is that of a former key. */
export async function loadChoices(load: () => Promise<void>): Promise<void> {
  const key = apiKey.value;
  try {
    await load();
    if (key === apiKey.value && isRefusal(error.value)) error.value = null;
  } catch (failure) {
    if (key === apiKey.value) error.value = failure;
  }
}

/** Measures at which strengths a vector steers, and stores the result on its card. */
export async function measure(vector: string): Promise<void> {
  const body = { kind: "dose_response" as const, vector, save: true };
  const job = await runJob("measure", (options) => dataOf<Job>(api.POST("/v1/evaluations", { body, ...options })));
  if (job !== null) await reload(vector);
}

/** Stops the job. The server may need a moment to cancel it. */
export function stop(): void {
  if (running.value !== null) running.value = { ...running.value, message: "Stopping" };
  abort?.abort();
}
