import { signal } from "@preact/signals";
import type { Vector } from "../api/types";
import { type Similarities, similarities } from "../library/store";

/** The similarities of the vectors on the map; null before it is drawn. */
export const found = signal<Similarities | null>(null);
export const busy = signal(false);
export const error = signal<unknown>(null);

/** Draws the map of some vectors. */
export async function drawVectors(list: readonly Vector[]): Promise<void> {
  busy.value = true;
  error.value = null;
  try {
    found.value = await similarities(list);
  } catch (failure) {
    error.value = failure;
  } finally {
    busy.value = false;
  }
}
