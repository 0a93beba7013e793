import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import type { Vector, VectorPage } from "../api/types";

const PAGE = 200;

/** The newest version of every vector, by name; null until they have been loaded. */
export const vectors = signal<readonly Vector[] | null>(null);

export const vectorByName = computed(() => new Map((vectors.value ?? []).map((vector) => [vector.name, vector])));

/** Returns the vector a name stands for, with or without a version. */
export function vectorNamed(name: string): Vector | undefined {
  return vectorByName.value.get(name.split("@")[0] ?? name);
}

/** Loads the library again. */
export async function loadVectors(): Promise<void> {
  const found: Vector[] = [];
  let cursor: string | null = null;
  do {
    const query: { limit: number; cursor?: string } = cursor === null ? { limit: PAGE } : { limit: PAGE, cursor };
    const page: VectorPage = await dataOf<VectorPage>(api.GET("/v1/vectors", { params: { query } }));
    found.push(...page.data);
    cursor = page.next_cursor ?? null;
  } while (cursor !== null);
  vectors.value = found;
}
