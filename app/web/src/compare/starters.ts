import { signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import { isAbort } from "../api/errors";
import type { Job } from "../api/types";
import { capabilities } from "../frame/server";
import { loadVectors, vectorByName } from "../frame/vectors";
import { runToEnd } from "../jobs/watch";
import { announce } from "../ui/announce";
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

/** Whether the last making ended before all vectors were made: by an error, or because it was stopped. */
export const startersLeft = signal(false);

let abort: AbortController | null = null;

/** Makes a vector of every starter concept that the library lacks. `onFirst` runs as soon as there is one to try. */
export async function makeStarters(onFirst: () => void): Promise<void> {
  if (abort !== null) return;
  const stop = new AbortController();
  abort = stop;
  starterError.value = null;
  try {
    if (startersLeft.value) await loadVectors(); // it may have failed after the last vector
    startersLeft.value = true;
    const missing = (capabilities.value?.concepts ?? []).filter((name) => !vectorByName.value.has(name));
    for (const [made, concept] of missing.entries()) {
      stop.signal.throwIfAborted();
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
    startersLeft.value = false;
    announce("The starter vectors were made.");
  } catch (error) {
    if (isAbort(error)) announce("Stopped.");
    else starterError.value = error;
  } finally {
    starterProgress.value = null;
    abort = null;
  }
}

/** Forgets that vectors are left to make. */
export function leaveStarters(): void {
  starterError.value = null;
  startersLeft.value = false;
}

export function stopStarters(): void {
  if (starterProgress.value !== null) starterProgress.value = { ...starterProgress.value, message: "stopping" };
  abort?.abort();
}
