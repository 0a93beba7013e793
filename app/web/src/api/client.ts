import { computed, signal } from "@preact/signals";
import { EventSourceParserStream } from "eventsource-parser/stream";
import createClient from "openapi-fetch";
import { keep, kept } from "../core/state";
import type { components, paths } from "./schema";

export type Schemas = components["schemas"];

export type Vector = Schemas["VectorAnswer"];
export type Job = Schemas["JobAnswer"];
export type Profile = Schemas["ProfileAnswer"];
export type Message = Schemas["Message"];
export type AppliedIntervention = Schemas["AppliedIntervention"];
export type Version = Schemas["VectorVersionAnswer"];
export type VersionPage = Schemas["VectorVersionsAnswer"];
export type Similar = Schemas["SimilarAnswer"];
export type CompareAnswer = Schemas["CompareAnswer"];
export type Readout = Schemas["ReadoutAnswer"];
export type Explanation = Schemas["ExplainAnswer"];
export type Policy = Schemas["PolicyAnswer"];
export type Monitor = Schemas["MonitorAnswer"];
export type MonitorDetail = Schemas["MonitorDetail"];
export type Key = Schemas["KeyAnswer"];
export type LatentSpace = Schemas["LatentSpaceAnswer"];
export type Dictionary = Schemas["DictionaryAnswer"];
export type View = Schemas["LinkRequest"]["view"];
export type Estimate = Schemas["Estimate"];

/** One generated token. `readout` is of the stream in which it was written, and contains what steering added. */
export type Token = Omit<Schemas["Token"], "id"> & { id: number | null };
export type TokenPiece = Token & { arm?: string | null; choice: number; index: number };

const ORIGIN = typeof location === "undefined" ? "http://127.0.0.1" : location.origin;
const RETRIED = new Set([429, 503]);
const MAX_ATTEMPTS = 4;
const MAX_WAIT_SECONDS = 30;
const STORAGE = "steering-server.key";

/** An error answer of the server: `message` is for people, `code` is stable. */
export class ApiError extends Error {
  override readonly name = "ApiError";

  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

type ErrorBody = { error?: { message?: unknown; code?: unknown } };

/** Reads the error body of a response; a body of another shape gives a message with the status alone. */
export async function errorOf(response: Response): Promise<ApiError> {
  const body = (await response.json().catch(() => ({}))) as ErrorBody;
  return errorFromBody(body, response.status);
}

/** Builds an ApiError from a parsed error body, as it also stands in `error` events. */
function errorFromBody({ error = {} }: ErrorBody, status: number): ApiError {
  const text = (value: unknown, otherwise: string) => (typeof value === "string" ? value : otherwise);
  const message = text(error.message, `The server answered with status ${status}.`);
  return new ApiError(status, text(error.code, "unknown"), message);
}

/** Whether the server does not let the key of this tab see or do something. */
export const isRefusal = (error: unknown): boolean =>
  error instanceof ApiError && (error.status === 401 || error.status === 403);

/** Whether an error only says that the caller stopped the request. */
export const isAbort = (error: unknown): boolean => error instanceof DOMException && error.name === "AbortError";
/** Whether an error says that the server was not reached, or that it is starting or stopping. */
export const isLost = (error: unknown): boolean => error instanceof TypeError || (error instanceof ApiError && error.status === 503); // biome-ignore format: one line

/** One sentence for a person about anything that was thrown. */
export function messageOf(error: unknown): string {
  if (error instanceof TypeError) return "The server cannot be reached. Is it still running?";
  return error instanceof Error ? error.message : String(error);
}

/** How many requests wait to be sent again, because the server was busy or is starting. */
export const retrying = signal(0);
/** How many requests have not reached the server, or lost it before their answer began. */
export const lostConnections = signal(0);
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

export function setKey(key: string | null): void {
  apiKey.value = key;
  keyWanted.value = false;
  keyRefusal.value = null;
  keep("sessionStorage", STORAGE, key);
}

/** Seconds to wait before the next attempt: what Retry-After says, else 1, 2, 4, ... */
export function waitSeconds(retryAfter: string | null, attempt: number, now = Date.now()): number {
  const given = retryAfter ?? "";
  const seconds = /^\d+$/.test(given) ? Number(given) : (Date.parse(given) - now) / 1000;
  return Math.min(Number.isFinite(seconds) ? Math.max(seconds, 0) : 2 ** attempt, MAX_WAIT_SECONDS);
}

/** Resolves after some seconds; rejects with AbortError as soon as the signal aborts. */
export async function pause(seconds: number, signal?: AbortSignal | null): Promise<void> {
  signal?.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/** Sends a request with the key of this tab. Repeats it on 429 and 503; throws ApiError on any other failure. `stop` ends the waiting
 * between two attempts only: a request that is on its way is not given up, so that its answer is known. */
export async function send(request: Request, transport = fetch, stop = request.signal): Promise<Response> {
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
      if (key !== apiKey.value) throw error; // an answer to another key says nothing of this one
      if (error.status === 401) keyWanted.value = true;
      if (error.status === 403 && error.code === "insufficient_scope") keyRefusal.value = error.message;
      throw error;
    }
    retrying.value++;
    await pause(waitSeconds(response.headers.get("Retry-After"), attempt), stop).finally(() => retrying.value--);
  }
}

/** The typed client of every route in the OpenAPI document. A failure is thrown as ApiError, so `data` is always there. */
export const api = createClient<paths>({ baseUrl: ORIGIN, fetch: (request) => send(request) });
/** Returns the data of an answer as the type of its schema: the inference of `api` gives the union over all content types. */
export const dataOf = async <T>(answer: Promise<{ data?: unknown }>): Promise<T> => (await answer).data as T;

type OnEvent = (name: string, data: unknown) => void;

/** Posts a request with `stream: true` and hands every event on. An `error` event without an arm is thrown. */
export async function stream(path: string, body: object, onEvent: OnEvent, signal: AbortSignal): Promise<void> {
  const [headers, text] = [{ "Content-Type": "application/json" }, JSON.stringify({ ...body, stream: true })];
  const response = await send(new Request(ORIGIN + path, { method: "POST", headers, body: text, signal }));
  for await (const { name, data } of eventsOf(response)) {
    const parsed: unknown = JSON.parse(data);
    if (name === "error" && !(parsed as { arm?: string }).arm) throw errorFromBody(parsed as object, response.status);
    onEvent(name, parsed);
  }
}

/** Follows a stream of events of a GET route until it ends. */
export async function follow(path: string, onEvent: OnEvent, signal?: AbortSignal): Promise<void> {
  const response = await send(new Request(ORIGIN + path, signal ? { signal } : {}));
  for await (const { name, data } of eventsOf(response)) onEvent(name, JSON.parse(data));
}

/** Fetches a file with the key of this tab and offers it as a download. */
export async function download(path: string, fileName: string): Promise<void> {
  offer(await (await send(new Request(ORIGIN + path))).blob(), fileName);
}

export function offer(file: Blob, fileName: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = fileName;
  link.click();
  URL.revokeObjectURL(link.href);
}

/** Yields the server-sent events of a response as they arrive; `name` is "message" where the stream names none. */
export async function* eventsOf({ body }: Response): AsyncGenerator<{ name: string; data: string }> {
  if (body === null) return;
  const texts = body.pipeThrough(new TextDecoderStream() as TransformStream<Uint8Array<ArrayBuffer>, string>);
  const reader = texts.pipeThrough(new EventSourceParserStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield { name: value.event ?? "message", data: value.data };
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
