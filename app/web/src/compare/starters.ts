import { signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import { isAbort } from "../api/errors";
import type { Job } from "../api/types";
import { capabilities } from "../frame/server";
import { loadVectors, vectorByName } from "../frame/vectors";
import { runToEnd } from "../jobs/watch";
import { concepts } from "./store";

export interface StarterProgress {
  concept: string;
  made: number;
  total: number;
  message: string;
}

/** How far the making of the starter vectors has come; null while none are being made. */
export const starterProgress = signal<StarterProgress | null>(null);
export const starterError = signal<unknown>(null);

let abort: AbortController | null = null;

/** Makes a vector of every starter concept that the library lacks. `onFirst` runs as soon as there is one to try. */
export async function makeStarters(onFirst: () => void): Promise<void> {
  const missing = (capabilities.value?.concepts ?? []).filter((name) => !vectorByName.value.has(name));
  const stop = new AbortController();
  abort = stop;
  starterError.value = null;
  try {
    for (const [made, concept] of missing.entries()) {
      if (stop.signal.aborted) break;
      const show = (message: string) => {
        starterProgress.value = { concept, made, total: missing.length, message };
      };
      show("");
      const description = concepts.value.find((one) => one.name === concept)?.description ?? "";
      const body = { name: concept, concept, description, tags: ["starter"] };
      await runToEnd(
        (options) => dataOf<Job>(api.POST("/v1/vectors/extract", { body, ...options })),
        (job) => show(job.progress.message ?? ""),
        stop.signal,
      );
      await loadVectors();
      if (made === 0) onFirst();
    }
  } catch (error) {
    if (!isAbort(error)) starterError.value = error;
  } finally {
    starterProgress.value = null;
  }
}

export function stopStarters(): void {
  if (starterProgress.value !== null) starterProgress.value = { ...starterProgress.value, message: "stopping" };
  abort?.abort();
}
