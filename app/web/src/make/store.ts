import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import { isAbort } from "../api/errors";
import type { Job } from "../api/types";
import { loadVectors, vectorNamed } from "../frame/vectors";
import { watchJob } from "../jobs/watch";
import { type PairRow, parsePairs } from "../maths/table";
import { complete, warningsFor } from "./warnings";

export type Source = "pairs" | "concept" | "describe";

export interface Running {
  kind: "extract" | "measure";
  message: string;
  done: number;
  total: number;
}

const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;
const LEAST_PAIRS = 2;
const NO_ROW: PairRow = { positive: "", negative: "" };

export const source = signal<Source>("pairs");
export const name = signal("");
export const rows = signal<readonly PairRow[]>([NO_ROW, NO_ROW, NO_ROW]);
export const concept = signal("");
export const trait = signal({ trait: "", opposite: "" });
export const method = signal("mean_difference");
export const running = signal<Running | null>(null);
export const error = signal<unknown>(null);

/** The name of the vector that was made last. */
export const made = signal<string | null>(null);
export const madeVector = computed(() => (made.value === null ? undefined : vectorNamed(made.value)));

export const warnings = computed(() => (source.value === "pairs" ? warningsFor(rows.value) : []));

/** What is still missing before a vector can be made; null when nothing is. */
export const problem = computed<string | null>(() => {
  if (!NAME.test(name.value)) return "Give it a name of small letters, digits, dots or dashes.";
  if (source.value === "pairs" && complete(rows.value).length < LEAST_PAIRS) return "Write at least two pairs.";
  if (source.value === "concept" && concept.value === "") return "Choose a concept.";
  if (source.value === "describe" && (trait.value.trait.trim() === "" || trait.value.opposite.trim() === ""))
    return "Describe the trait and its opposite.";
  return null;
});

export function setRow(index: number, part: Partial<PairRow>): void {
  const next = rows.value.map((row, at) => (at === index ? { ...row, ...part } : row));
  const last = next.at(-1);
  rows.value = last && (last.positive !== "" || last.negative !== "") ? [...next, NO_ROW] : next;
}

export function removeRow(index: number): void {
  const next = rows.value.filter((_, at) => at !== index);
  rows.value = next.length === 0 ? [NO_ROW] : next;
}

/** Adds pairs from a spreadsheet or a file below what is there. Throws an error that names the line. */
export function addText(text: string): void {
  const added = parsePairs(text);
  rows.value = [...complete(rows.value), ...added, NO_ROW];
}

function extractBody(): object {
  if (source.value === "concept") return { concept: concept.value };
  if (source.value === "describe") return { describe: trait.value, description: trait.value.trait };
  return { pairs: complete(rows.value) };
}

let abort: AbortController | null = null;

async function runJob(kind: Running["kind"], start: () => Promise<Job>): Promise<Job | null> {
  const stopper = new AbortController();
  abort = stopper;
  error.value = null;
  running.value = { kind, message: "Waiting to begin", done: 0, total: 0 };
  try {
    return await watchJob(
      await start(),
      ({ progress }) => {
        const { message = "", done = 0, total = 0 } = progress;
        running.value = { kind, message, done, total };
      },
      stopper.signal,
    );
  } catch (failure) {
    if (!isAbort(failure)) error.value = failure;
    return null;
  } finally {
    running.value = null;
  }
}

/** Makes the vector. */
export async function make(): Promise<void> {
  if (problem.value !== null) return;
  const body = { name: name.value, method: method.value, ...extractBody() };
  const job = await runJob("extract", () => dataOf<Job>(api.POST("/v1/vectors/extract", { body })));
  if (job === null) return;
  await loadVectors();
  made.value = name.value;
}

/** Measures at which strengths a vector steers, and stores the result on its card. */
export async function measure(vector: string): Promise<void> {
  const body = { kind: "dose_response" as const, vector, save: true };
  const job = await runJob("measure", () => dataOf<Job>(api.POST("/v1/evaluations", { body })));
  if (job !== null) await loadVectors();
}

export function stop(): void {
  abort?.abort();
}
