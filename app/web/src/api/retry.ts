import { computed, signal } from "@preact/signals";
import { keep, kept } from "../core/state";
import { type ApiError, errorOf } from "./errors";

const RETRIED = new Set([429, 503]);
const MAX_ATTEMPTS = 4;
const MAX_WAIT_SECONDS = 30;

/** How many requests wait to be sent again, because the server was busy or is starting. */
export const retrying = signal(0);

/** How many requests have not reached the server, or lost it before their answer began. */
export const lostConnections = signal(0);

/** Seconds to wait before the next attempt: what Retry-After says, else 1, 2, 4, ... */
export function waitSeconds(retryAfter: string | null, attempt: number, now = Date.now()): number {
  if (retryAfter !== null) {
    const seconds = /^\d+$/.test(retryAfter) ? Number(retryAfter) : (Date.parse(retryAfter) - now) / 1000;
    if (Number.isFinite(seconds)) return Math.min(Math.max(seconds, 0), MAX_WAIT_SECONDS);
  }
  return Math.min(2 ** attempt, MAX_WAIT_SECONDS);
}

/** Resolves after some seconds; rejects with AbortError as soon as the signal aborts. */
export function pause(seconds: number, signal?: AbortSignal | null): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, seconds * 1000);
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
  });
}

function noteRefusal(error: ApiError): void {
  if (error.status === 401) keyWanted.value = true;
  if (error.status === 403 && error.code === "insufficient_scope") keyRefusal.value = error.message;
}

/**
 * Sends a request with the key of this tab. Repeats it on 429 and 503; throws ApiError on any other failure. `stop` ends the waiting
 * between two attempts only: a request that is on its way is not given up, so that its answer is known.
 */
export async function send(
  request: Request,
  transport: typeof fetch = fetch,
  stop = request.signal,
): Promise<Response> {
  for (let attempt = 0; ; attempt++) {
    const copy = new Request(request.clone());
    const key = apiKey.value;
    if (key !== null) copy.headers.set("Authorization", `Bearer ${key}`);
    const response = await transport(copy).catch((failure) => {
      if (failure instanceof TypeError) lostConnections.value++;
      throw failure;
    });
    if (response.ok) return response;
    const repeatable = RETRIED.has(response.status) && response.headers.get("x-should-retry") !== "false";
    if (!repeatable || attempt + 1 >= MAX_ATTEMPTS) {
      const error = await errorOf(response);
      if (key === apiKey.value) noteRefusal(error); // an answer to another key says nothing of this one
      throw error;
    }
    retrying.value++;
    await pause(waitSeconds(response.headers.get("Retry-After"), attempt), stop).finally(() => retrying.value--);
  }
}

const STORAGE = "steering-server.key";

/** The API key of this tab. It is kept in session storage, so that it ends with the tab. */
export const apiKey = signal<string | null>(kept("sessionStorage", STORAGE));

/** Whether the server has refused a request for want of a (valid) key. */
export const keyWanted = signal(false);

/** The answer of the server when the key lacked a scope; null while the key was enough. */
export const keyRefusal = signal<string | null>(null);

export const keyState = computed<"wanted" | "limited" | "set" | "none">(() => {
  if (keyWanted.value) return "wanted";
  if (apiKey.value === null) return "none";
  return keyRefusal.value === null ? "set" : "limited";
});

/** Sets or forgets the key. */
export function setKey(key: string | null): void {
  apiKey.value = key;
  keyWanted.value = false;
  keyRefusal.value = null;
  keep("sessionStorage", STORAGE, key);
}
