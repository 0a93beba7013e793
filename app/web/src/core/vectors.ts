import { computed } from "@preact/signals";
import { api, dataOf, keyState } from "../api/client";
import type { Concept, Vector, VectorPage } from "../api/types";
import { allPages, Queries, Query } from "./query";
import { remembered, textOrNull } from "./state";

export const PAGE = 200;

/** The newest version of every vector, and what the list leaves out. */
export const library = new Query((signal) =>
  allPages<Vector>((cursor) => {
    const query = cursor === undefined ? { limit: PAGE } : { limit: PAGE, cursor };
    return dataOf<VectorPage>(api.GET("/v1/vectors", { params: { query }, signal }));
  }),
);

/** The newest version of every vector; null until they have been loaded. */
export const vectors = computed<readonly Vector[] | null>(() => library.data.value?.data ?? null);

/** Whether the key of this tab may not see the vectors, as far as that is known. */
const refused = computed(() => keyState.value === "limited" || keyState.value === "wanted");

/** Whether the vectors are still to come. */
export const vectorsAwaited = computed(() => vectors.value === null && !refused.value);

export const vectorByName = computed(() => new Map((vectors.value ?? []).map((vector) => [vector.name, vector])));

/** Returns the name in an id such as `sentiment@3`. */
export const plainName = (id: string): string => id.split("@")[0] ?? id;

/** Returns the vector a name stands for, with or without a version. */
export const vectorNamed = (name: string): Vector | undefined => vectorByName.value.get(plainName(name));

/** The vector whose card Make shows; null while one is being described there. */
export const card = remembered<string | null>("card", null, textOrNull);

/** The starter concepts and those in words, with the words of their two poles. */
export const conceptList = new Query(
  async (signal) => (await dataOf<{ data: Concept[] }>(api.GET("/v1/concepts", { signal }))).data,
);

/** Those with pairs that come with the server. */
export const concepts = computed<readonly Concept[]>(() =>
  (conceptList.data.value ?? []).filter((one) => one.pairs > 0),
);

/** Whether the words of the poles are still to come: those of the vectors and of the concepts. */
export const polesAwaited = computed(
  () => !refused.value && [library, conceptList].some(({ data, error }) => data.value === null && error.value === null),
);

/** A concept with its pairs. A side of a pair is a text, or the messages of a conversation. */
export interface ConceptDetail {
  positive: string;
  negative: string;
  data: { positive: unknown; negative: unknown; topic?: string | null }[];
}

export const conceptDetails = new Queries((signal, name: string) =>
  dataOf<ConceptDetail>(api.GET("/v1/concepts/{name}", { params: { path: { name } }, signal })),
);

/** What a vector means above and below zero, in words. */
export interface Poles {
  positive: string;
  negative: string;
  /** Whether somebody wrote these words; else they are made of the name. */
  given: boolean;
}

const OPPOSITE = /^(.*?) \(opposite: (.*)\)$/s;

/** Returns a description that says what both sides of a vector do, for `polesOf` to read. */
export function describePoles(positive: string, negative: string): string {
  const [more, less] = [positive.trim(), negative.trim()];
  return more !== "" && less !== "" ? `${more} (opposite: ${less})` : more;
}

/** Returns the words of a vector's two poles: those of its starter concept, else those of its description, else made of its name. */
export function polesOf(name: string, vector: Vector | undefined = vectorNamed(name)): Poles {
  const own = plainName(name);
  const description = vector?.description ?? "";
  const concept = concepts.value.find((one) => one.name === own);
  if (concept && (description === "" || description === concept.description))
    return { positive: concept.positive, negative: concept.negative, given: true };
  const [, positive, negative] = OPPOSITE.exec(description) ?? [];
  if (positive && negative) return { positive, negative, given: true };
  return { positive: `more ${own}`, negative: `less ${own}`, given: false };
}

/** Returns the words of the pole that a score or a strength points to. */
export function poleAt(name: string, value: number): string {
  const poles = polesOf(name);
  return value < 0 ? poles.negative : poles.positive;
}
