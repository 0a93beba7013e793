import { computed, signal } from "@preact/signals";
import { sum } from "d3-array";
import { api, type CompareAnswer, dataOf, type Schemas } from "../api/client";
import { beginJob } from "../core/jobs";
import { Query } from "../core/query";
import { capabilities, conceptDetails, conceptList, concepts, describePoles } from "../core/server";
import { remembered } from "../core/state";
import { type PairRow, parsePairs, words } from "../maths/text";
import * as texts from "../words.json";
import { dictionaries } from "./Dictionary";
import { error, measure, name, nameProblem } from "./work";

type Source = keyof typeof texts.sources;

export const LEAST_PAIRS = 2;
const NO_ROW: PairRow = { positive: "", negative: "" };
const NO_ROWS: readonly PairRow[] = [NO_ROW, NO_ROW, NO_ROW];

const chosenSource = remembered<Source>("source", "pairs", (before) => (String(before) in texts.sources ? (before as Source) : undefined)); // biome-ignore format: one line

/** The sources that this server can serve, with their words. */
export const sources = computed(() =>
  (Object.entries(texts.sources) as [Source, string][]).filter(([one]) => {
    if (one === "dictionary") return (dictionaries.data.value ?? []).length > 0;
    return one !== "transfer" || capabilities.value?.second_model === true;
  }),
);

export const source = computed<Source>(() =>
  sources.value.some(([one]) => one === chosenSource.value) ? chosenSource.value : "pairs",
);

export function chooseSource(next: Source): void {
  chosenSource.value = next;
  error.value = null;
}

export const rows = remembered("pairs", NO_ROWS);
export const concept = remembered("concept", "");
/** Whether the pairs of the concept are being read, to be edited. */
export const adding = signal(false);
/** What the sides of one's own pairs do, in words: the ends of the dial, and what the model is told next to steering. */
export const sides = remembered("sides", NO_ROW);
export const method = signal("mean_difference");
export const warnings = computed(() => (source.value === "pairs" ? warningsFor(rows.value) : []));

/** What is still missing before a vector can be found from examples; null when nothing is. */
export const problem = computed<string | null>(() => {
  const wrong = nameProblem(name.value);
  if (wrong !== null) return wrong;
  if (source.value === "pairs" && complete(rows.value).length < LEAST_PAIRS) return "It takes at least two pairs.";
  if (source.value === "concept" && concept.value === "") return "Choose a concept.";
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
  rows.value = [...written(), ...parsePairs(text), NO_ROW];
}

const same = (one: PairRow, other: PairRow) => one.positive === other.positive && one.negative === other.negative;
/** The rows with a text on either side. A pair may be half written. */
const written = (): PairRow[] => rows.value.filter((row) => row.positive !== "" || row.negative !== "");

/** Chooses a concept. Its vector has the name that was typed, else that of the concept. */
export function chooseConcept(chosen: string): void {
  const suggested = concepts.value.some((one) => one.name === name.value);
  if (name.value === "" || suggested) name.value = chosen;
  concept.value = chosen;
}

/** The rows that came from a concept. A row that was edited since is another object, and the user's own. */
let ofConcept: ReadonlySet<PairRow> = new Set();

/** Adds the pairs of the chosen concept below one's own, to be edited. They take the place of those of a concept that was added before, so
 * that two concepts are not mixed. Pairs that are there already are not added again. */
export async function addConceptPairs(): Promise<void> {
  const chosen = concept.value;
  const query = conceptDetails.of(chosen);
  adding.value = true;
  error.value = null;
  const detail = await query.load();
  adding.value = false;
  if (concept.value !== chosen || source.value !== "concept") return;
  if (detail === null) {
    error.value = query.error.value;
    return;
  }
  const { positive, negative, data } = detail;
  const before = written().filter((row) => !ofConcept.has(row));
  const pairs = data.map((pair) => ({ positive: textOf(pair.positive), negative: textOf(pair.negative) }));
  const added = pairs.filter((row) => !before.some((one) => same(one, row)));
  ofConcept = new Set(added);
  rows.value = [...before, ...added, NO_ROW];
  sides.value = { positive: positive ?? "", negative: negative ?? "" };
  chooseSource("pairs");
}

function textOf(text: unknown): string {
  if (typeof text === "string") return text;
  const messages = text as { role: string; content: string }[];
  return messages.map((message) => message.content).join("\n");
}

/** Finds the vector in examples. Where they are enough to measure it well, its strengths are measured quickly by itself, to be stopped at will. */
export function extract(): void {
  if (problem.value !== null) return;
  const [typed, chosen] = [source.value === "pairs", concepts.value.find((one) => one.name === concept.value)];
  const pairs = complete(rows.value);
  const { positive = "", negative = "" } = (typed ? sides.value : chosen) ?? {};
  const given = typed ? { pairs } : { concept: concept.value };
  const description = describePoles(positive, negative);
  const body = { name: name.value, method: method.value, ...given, ...(chosen || typed ? { description } : {}) };
  const enough = (typed ? pairs.length : (chosen?.pairs ?? 0)) >= ENOUGH;
  const task = beginJob({ place: "make", kind: "extract", vector: body.name }, "/v1/vectors/extract", body);
  void task.end.then((made) => made && enough && measure(body.name, "quick"));
}

/** As the server judges it. */
const ENOUGH = 20;
const LENGTH_RATIO = 1.5;
const SHARED_WORDS = 0.08;

export const complete = (rows: readonly PairRow[]): PairRow[] =>
  rows.filter((row) => row.positive.trim() !== "" && row.negative.trim() !== "");

/** Says what may make the vector worse, while the examples are still being written. */
export function warningsFor(rows: readonly PairRow[]): string[] {
  const pairs = complete(rows);
  if (pairs.length === 0) return [];
  const unfinished = rows.filter((row) => (row.positive.trim() === "") !== (row.negative.trim() === "")).length;
  const equal = pairs.filter((row) => row.positive.trim() === row.negative.trim()).length;
  const repeated = pairs.length - new Set(pairs.map((row) => `${row.positive}\u0000${row.negative}`)).size;
  const few = `${count(pairs.length, "pair is", "pairs are")} few: the quality cannot be measured well below ${ENOUGH}.`;
  const [positive, negative] = (["positive", "negative"] as const).map((side) => sum(pairs, (row) => row[side].trim().length)) as [number, number]; // biome-ignore format: one line
  const ratio = Math.max(positive, negative) / Math.max(Math.min(positive, negative), 1);
  const longer = positive > negative ? "positive" : "negative";
  const apart = pairs.filter((row) => shared(row) < SHARED_WORDS).length;
  return [
    unfinished > 0 && `${count(unfinished, "pair has", "pairs have")} only one side and will be left out.`,
    pairs.length < ENOUGH && few,
    equal > 0 && `${count(equal, "pair has", "pairs have")} the same text on both sides.`,
    repeated > 0 && `${count(repeated, "pair is", "pairs are")} there twice.`,
    ratio >= LENGTH_RATIO && `The lengths differ: the ${longer} texts are ${ratio.toFixed(1)} times as long. The vector may learn length.`, // biome-ignore format: one line
    apart * 2 >= pairs.length &&
      "The two sides share few words. Is it the same topic on both? The vector may learn the topic.",
  ].filter((warning) => warning !== false);
}

/** The share of words that both sides of a pair have, from 0 to 1. */
function shared(row: PairRow): number {
  const [a, b] = [row.positive, row.negative].map(
    (text) => new Set(words(text.toLowerCase()).map((word) => word.trim().replace(/[^\p{L}\p{N}]/gu, ""))),
  ) as [Set<string>, Set<string>];
  const both = [...a].filter((word) => b.has(word)).length;
  return both / Math.max(new Set([...a, ...b]).size, 1);
}

const count = (n: number, one: string, many: string): string => (n === 1 ? `1 ${one}` : `${n} ${many}`);
const MAX_TOKENS = 40;

/** What is searched for among the concepts in words. */
export const wanted = signal("");
const MOST_FOUND = 6;

/** The concepts in words that fit what is searched for: those whose name or sentences have every word of it. */
export const inWords = computed(() => {
  const parts = wanted.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (one: Schemas["ConceptAnswer"]) => parts.every((part) => `${one.name} ${one.kind} ${one.description} ${one.positive}`.toLowerCase().includes(part)); // biome-ignore format: one line
  const all = (conceptList.data.value ?? []).filter((one) => one.pairs === 0 && fits(one));
  return parts.length === 0 ? [] : all.slice(0, MOST_FOUND);
});

/** Takes a concept in words as the description. Its pairs are still to be proposed. */
export function describe({ name: chosen, positive, negative }: Schemas["ConceptAnswer"]): void {
  sides.value = { positive, negative };
  name.value = chosen;
  wanted.value = "";
}

/** Has the model answer each question in both ways: everyday ones on many topics, so that the pairs differ in one thing only. Each pair is in the table as soon as it is written, to be edited. */
export const proposing = new Query(async (signal) => {
  const { positive, negative } = sides.value;
  const longest = (positive.toLowerCase().match(/[a-z0-9]+/g) ?? []).sort((a, b) => b.length - a.length)[0];
  if (name.value === "") name.value = longest?.slice(0, 40) ?? "";
  const opposite = negative.trim() === "" ? `the opposite of: ${positive}` : negative;
  for (const [index, question] of texts.questions.entries()) {
    const arms = [
      { name: "positive", steering: [], system: `Answer in this manner: ${positive.trim()}.` },
      { name: "negative", steering: [], system: `Answer in this manner: ${opposite.trim()}.` },
    ];
    const messages = [{ role: "user" as const, content: question }];
    const body = { messages, arms, baseline: "negative", seed: index, max_tokens: MAX_TOKENS, temperature: 0.7 };
    const answer = await dataOf<CompareAnswer>(api.POST("/v1/compare", { body, signal }));
    const text = (side: string) => answer.arms.find((arm) => arm.name === side)?.choices[0]?.text.trim() ?? "";
    const pair = { positive: text("positive"), negative: text("negative") };
    if (!rows.value.some((row) => same(row, pair))) rows.value = [...written(), pair, NO_ROW];
  }
  return true;
});
