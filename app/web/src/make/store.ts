import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import type { Job } from "../api/types";
import { type PairRow, parsePairs } from "../maths/table";
import { complete, warningsFor } from "./warnings";
import { makeByJob, name, nameProblem } from "./work";

export type Source = "pairs" | "concept" | "describe" | "dictionary" | "transfer";

export const LEAST_PAIRS = 2;
const NO_ROW: PairRow = { positive: "", negative: "" };

export const source = signal<Source>("pairs");
export const rows = signal<readonly PairRow[]>([NO_ROW, NO_ROW, NO_ROW]);
export const concept = signal("");
export const trait = signal({ trait: "", opposite: "" });
export const method = signal("mean_difference");

export const warnings = computed(() => (source.value === "pairs" ? warningsFor(rows.value) : []));

/** What is still missing before a vector can be found from examples; null when nothing is. */
export const problem = computed<string | null>(() => {
  const wrong = nameProblem(name.value);
  if (wrong !== null) return wrong;
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

/** Finds the vector in examples. */
export async function extract(): Promise<void> {
  if (problem.value !== null) return;
  const body = { name: name.value, method: method.value, ...extractBody() };
  await makeByJob("extract", body.name, (options) =>
    dataOf<Job>(api.POST("/v1/vectors/extract", { body, ...options })),
  );
}
