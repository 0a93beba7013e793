import { signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import { isAbort } from "../api/errors";
import type { Job } from "../api/types";
import { open, place } from "../frame/places";
import { runToEnd } from "../jobs/watch";
import { made, reload, error as workError } from "../make/work";
import { announce } from "../ui/announce";

export interface Making {
  message: string;
  done: number;
  total: number;
}

/** The name of the vector that is made of the selected texts. */
export const name = signal("");

/** How far the vector is; null while none is made. */
export const making = signal<Making | null>(null);
export const error = signal<unknown>(null);

/** The vector that was stored while another place was open. */
export const stored = signal<string | null>(null);

let abort: AbortController | null = null;

/** Makes a vector that points from some texts to others. Opens its card, unless the user has left Space meanwhile. */
export async function makeVector(vector: string, positive: string[], negative: string[]): Promise<void> {
  const stopper = new AbortController();
  abort = stopper;
  error.value = null;
  stored.value = null;
  making.value = { message: "Waiting to begin", done: 0, total: 0 };
  try {
    const body = { name: vector, positive, negative };
    await runToEnd(
      (options) => dataOf<Job>(api.POST("/v1/vectors/extract", { body, ...options })),
      ({ progress }) => {
        const { message = "", done = 0, total = 0 } = progress;
        making.value = { message, done, total };
      },
      stopper.signal,
    );
    announce("The vector was found.");
    if (name.value === vector) name.value = "";
    workError.value = null;
    await reload(vector);
    if (place.value === "space") goToCard(vector);
    else {
      stored.value = vector;
      error.value = workError.value; // Space shows a vector only once it is listed, so it says why it is not
    }
  } catch (failure) {
    if (isAbort(failure)) announce("Stopped.");
    else error.value = failure;
  } finally {
    making.value = null;
  }
}

/** Opens the card of a vector that is listed. What went wrong in Make before is no error of this vector. */
export function openCard(vector: string): void {
  workError.value = null;
  goToCard(vector);
}

function goToCard(vector: string): void {
  stored.value = null;
  made.value = vector;
  open("make");
}

export function stopMaking(): void {
  if (making.value !== null) making.value = { ...making.value, message: "Stopping" };
  abort?.abort();
}
