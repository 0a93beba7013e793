import { computed } from "@preact/signals";
import { api, dataOf } from "../api/client";
import { keyState } from "../api/retry";
import type { Vector, VectorPage } from "../api/types";
import { allPages, Query } from "./query";
import { remembered, textOrNull } from "./state";

/** Entries that one answer has at most. */
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

/** Whether the vectors are still to come: none come for a key that may not see them. */
export const vectorsAwaited = computed(
  () => vectors.value === null && keyState.value !== "limited" && keyState.value !== "wanted",
);

export const vectorByName = computed(() => new Map((vectors.value ?? []).map((vector) => [vector.name, vector])));

/** Returns the vector a name stands for, with or without a version. */
export function vectorNamed(name: string): Vector | undefined {
  return vectorByName.value.get(name.split("@")[0] ?? name);
}

/** The vector whose card Make shows; null while one is being described there. */
export const card = remembered<string | null>("card", null, textOrNull);
