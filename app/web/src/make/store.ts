import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import type { Job } from "../api/types";
import { concepts } from "../compare/store";
import { remembered } from "../frame/remembered";
import { type PairRow, parsePairs } from "../maths/table";
import { complete, warningsFor } from "./warnings";
import { error, makeByJob, name, nameProblem } from "./work";

export type Source = "pairs" | "concept" | "describe" | "dictionary" | "transfer";

export const LEAST_PAIRS = 2;
const NO_ROW: PairRow = { positive: "", negative: "" };

const NO_ROWS: readonly PairRow[] = [NO_ROW, NO_ROW, NO_ROW];

export const source = signal<Source>("pairs");
export const rows = remembered("pairs", NO_ROWS, (before) => (Array.isArray(before) && before.every(isRow) ? before : undefined)); // biome-ignore format: one line
export const concept = signal("");
/** Whether the pairs of the concept are being read, to be edited. */
export const adding = signal(false);
export const trait = remembered("trait", { trait: "", opposite: "" }, (before) => {
  const { trait, opposite } = before as { trait: unknown; opposite: unknown };
  return typeof trait === "string" && typeof opposite === "string" ? { trait, opposite } : undefined;
});
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

function isRow(one: unknown): one is PairRow {
  const { positive, negative } = (one ?? {}) as Partial<PairRow>;
  return typeof positive === "string" && typeof negative === "string";
}

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
  rows.value = [...written(), ...added, NO_ROW];
}

/** The rows with a text on either side. A pair may be half written. */
function written(): PairRow[] {
  return rows.value.filter((row) => row.positive !== "" || row.negative !== "");
}

/** Chooses a concept. Its vector has the name that was typed, else that of the concept. */
export function chooseConcept(chosen: string): void {
  const suggested = concepts.value.some((one) => one.name === name.value);
  if (name.value === "" || suggested) name.value = chosen;
  concept.value = chosen;
}

/** The rows that came from a concept. A row that was edited since is another object, and the user's own. */
let ofConcept: ReadonlySet<PairRow> = new Set();

interface ConceptDetail {
  data: { positive: unknown; negative: unknown }[];
}

/**
 * Adds the pairs of the chosen concept below one's own, to be edited. They take the place of those of a concept that was added before, so
 * that two concepts are not mixed. Pairs that are there already are not added again.
 */
export async function addConceptPairs(): Promise<void> {
  const chosen = concept.value;
  const isLate = () => concept.value !== chosen || source.value !== "concept";
  adding.value = true;
  error.value = null;
  try {
    const params = { path: { name: chosen } };
    const { data } = await dataOf<ConceptDetail>(api.GET("/v1/concepts/{name}", { params }));
    if (isLate()) return;
    const before = written().filter((row) => !ofConcept.has(row));
    const known = new Set(before.map((row) => JSON.stringify([row.positive, row.negative])));
    const pairs = data.map((pair) => ({ positive: textOf(pair.positive), negative: textOf(pair.negative) }));
    const added = pairs.filter((row) => !known.has(JSON.stringify([row.positive, row.negative])));
    ofConcept = new Set(added);
    rows.value = [...before, ...added, NO_ROW];
    source.value = "pairs";
  } catch (failure) {
    if (!isLate()) error.value = failure;
  } finally {
    adding.value = false;
  }
}

function textOf(text: unknown): string {
  if (typeof text === "string") return text;
  const messages = text as { role: string; content: string }[];
  return messages.map((message) => message.content).join("\n");
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
