import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import { keyState } from "../api/key";
import { Newest } from "../api/newest";
import type { Vector, VectorPage } from "../api/types";

/** Entries that one answer has at most. */
export const PAGE = 200;

/** The newest version of every vector, by name; null until they have been loaded. */
export const vectors = signal<readonly Vector[] | null>(null);

/** What the list of vectors leaves out. */
export const vectorWarnings = signal<readonly string[]>([]);

/** Why the vectors could not be read again after one was deleted; null as soon as they are read, or are not to be seen any more. */
export const vectorsTrouble = signal<unknown>(null);

/** Whether the vectors are still to come: none come for a key that may not see them. */
export const vectorsAwaited = computed(
  () => vectors.value === null && keyState.value !== "limited" && keyState.value !== "wanted",
);

export const vectorByName = computed(() => new Map((vectors.value ?? []).map((vector) => [vector.name, vector])));

/** Returns the vector a name stands for, with or without a version. */
export function vectorNamed(name: string): Vector | undefined {
  return vectorByName.value.get(name.split("@")[0] ?? name);
}

const newest = new Newest();

/** Loads the library again. The newest load counts, and an earlier one waits for it. Rejects where the library cannot be read. */
export function loadVectors(): Promise<void> {
  return newest.ask(readVectors, putVectors);
}

function putVectors({ data, warnings }: { data: readonly Vector[] | null; warnings: readonly string[] }): void {
  vectors.value = data;
  vectorWarnings.value = warnings;
  vectorsTrouble.value = null;
}

/** Drops the list that a former key was shown. */
export function forgetVectors(): void {
  putVectors({ data: null, warnings: [] });
}

async function readVectors(): Promise<{ data: Vector[]; warnings: string[] }> {
  const data: Vector[] = [];
  const warnings: string[] = [];
  let cursor: string | null = null;
  do {
    const query: { limit: number; cursor?: string } = cursor === null ? { limit: PAGE } : { limit: PAGE, cursor };
    const page: VectorPage = await dataOf<VectorPage>(api.GET("/v1/vectors", { params: { query } }));
    data.push(...page.data);
    warnings.push(...(page.warnings ?? []));
    cursor = page.next_cursor ?? null;
  } while (cursor !== null);
  return { data, warnings };
}
