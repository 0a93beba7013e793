import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import { isAbort } from "../api/errors";
import type { Dictionary, DictionarySearch } from "../api/types";
import { vectors } from "../frame/vectors";
import { linesOf } from "../maths/table";
import { error, made, nameProblem, show } from "./work";

export type Query = "texts" | "vector";

/** The dictionaries of the server; null until they have been loaded. */
export const dictionaries = signal<readonly Dictionary[] | null>(null);
export const chosen = signal<string | null>(null);
export const query = signal<Query>("texts");
export const texts = signal("");
export const against = signal("");
export const near = signal("");
export const top = signal(20);

/** Only features with at least this output score; null: the output score is not measured. */
export const leastScore = signal<number | null>(null);

export const searching = signal(false);
/** The features of a search, with what was asked. */
export type Found = DictionarySearch & { readonly query: Query; readonly leastScore: number | null };
export const found = signal<Found | null>(null);

/** The feature that is made a vector, and the name it gets. */
export const feature = signal<number | null>(null);
export const featureName = signal("");
export const storing = signal(false);

export const dictionary = computed(() => dictionaries.value?.find((one) => one.name === chosen.value) ?? null);

/** The vectors that have a direction where the features of the chosen dictionary are. */
export const comparable = computed(() => {
  const layer = dictionary.value?.layer;
  return (vectors.value ?? []).filter((one) => layer != null && one.layers.includes(layer));
});

/** What is still missing before a search; null when nothing is. */
export const searchProblem = computed<string | null>(() => {
  if (dictionary.value === null) return "Choose a dictionary.";
  if (query.value === "texts" && linesOf(texts.value).length === 0) return "Write a text.";
  if (query.value === "vector" && !comparable.value.some((one) => one.name === near.value)) return "Choose a vector.";
  return null;
});

/** Lists the dictionaries and chooses the first that can be used. */
export async function loadDictionaries(): Promise<void> {
  const { data } = await dataOf<{ data: Dictionary[] }>(api.GET("/v1/dictionaries"));
  dictionaries.value = data;
  if (dictionary.value === null) choose(data.find((one) => one.problem == null)?.name ?? null);
}

export function choose(name: string | null): void {
  if (name === chosen.value) return;
  stopSearch();
  chosen.value = name;
  found.value = null;
  feature.value = null;
}

let abort: AbortController | null = null;

/** Searches the chosen dictionary. */
export async function search(): Promise<void> {
  const name = chosen.value;
  if (name === null || searchProblem.value !== null) return;
  abort?.abort();
  const stopper = new AbortController();
  const card = made.value;
  abort = stopper;
  searching.value = true;
  error.value = null;
  try {
    const path = "/v1/dictionaries/{name}/search";
    const asked = { query: query.value, leastScore: leastScore.value };
    const options = { params: { path: { name } }, body: searchBody(), signal: stopper.signal };
    found.value = { ...asked, ...(await dataOf<DictionarySearch>(api.POST(path, options))) };
    feature.value = null;
    if (made.value === card) made.value = null; // not the card of a vector that was made meanwhile
  } catch (failure) {
    if (!isAbort(failure)) error.value = failure;
  } finally {
    if (abort === stopper) searching.value = false;
  }
}

export function stopSearch(): void {
  abort?.abort();
}

/** The request of a search. */
export function searchBody() {
  const others = linesOf(against.value);
  return {
    ...(query.value === "vector" ? { vector: near.value } : { texts: linesOf(texts.value) }),
    ...(query.value === "texts" && others.length > 0 ? { against: others } : {}),
    ...(leastScore.value === null ? {} : { min_output_score: leastScore.value }),
    top: top.value,
  };
}

/** Chooses a feature; its vector has the name that was typed, else one made from the number. */
export function chooseFeature(number: number): void {
  if (featureName.value === "" || featureName.value === suggested(feature.value)) featureName.value = suggested(number);
  feature.value = number;
}

function suggested(number: number | null): string {
  return number === null ? "" : `feature-${number}`;
}

/** Stores the chosen feature as a vector and opens its card. */
export async function storeFeature(): Promise<void> {
  const [name, number, vector] = [found.value?.dictionary, feature.value, featureName.value];
  if (name === undefined || number === null || nameProblem(vector) !== null) return;
  storing.value = true;
  error.value = null;
  try {
    const body = { name: vector, feature: number };
    await api.POST("/v1/dictionaries/{name}/vectors", { params: { path: { name } }, body });
    await show(vector);
    if (featureName.value === vector) featureName.value = ""; // the next one may be chosen already
    if (feature.value === number) feature.value = null;
  } catch (failure) {
    error.value = failure;
  } finally {
    storing.value = false;
  }
}
