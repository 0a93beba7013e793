import createClient from "openapi-fetch";
import { errorFromBody } from "./errors";
import { send } from "./retry";
import type { paths } from "./schema";

const ORIGIN = typeof location === "undefined" ? "http://127.0.0.1" : location.origin;

/** The typed client of every route in the OpenAPI document. A failure is thrown as ApiError, so `data` is always there. */
export const api = createClient<paths>({ baseUrl: ORIGIN, fetch: (request) => send(request) });

/**
 * Returns the data of an answer as the type of the schema that the route answers with.
 *
 * `api` throws on every failure, so there always is data. Its own inference gives the union over all content types.
 */
export async function dataOf<T>(answer: Promise<{ data?: unknown }>): Promise<T> {
  return (await answer).data as T;
}

function jsonRequest(path: string, body: unknown, signal?: AbortSignal): Request {
  return new Request(ORIGIN + path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    ...(signal ? { signal } : {}),
  });
}

/** Posts a request with `stream: true` and hands every event on. An `error` event without an arm is thrown. */
export async function stream(
  path: string,
  body: object,
  onEvent: (name: string, data: unknown) => void,
  signal: AbortSignal,
): Promise<void> {
  const response = await send(jsonRequest(path, { ...body, stream: true }, signal));
  for await (const { name, data } of eventsOf(response)) {
    const parsed: unknown = JSON.parse(data);
    if (name === "error" && !(parsed as { arm?: string }).arm) throw errorFromBody(parsed as object, response.status);
    onEvent(name, parsed);
  }
}

/** Follows a stream of events of a GET route until it ends. */
export async function follow(path: string, onEvent: (name: string, data: unknown) => void, signal?: AbortSignal) {
  const response = await send(new Request(ORIGIN + path, signal ? { signal } : {}));
  for await (const { name, data } of eventsOf(response)) onEvent(name, JSON.parse(data));
}

/** Fetches a file with the key of this tab and offers it as a download. */
export async function download(path: string, fileName: string): Promise<void> {
  const response = await send(new Request(ORIGIN + path));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = fileName;
  link.click();
  URL.revokeObjectURL(link.href);
}

/** One server-sent event; `name` is "message" where the stream names none. */
export interface ServerEvent {
  name: string;
  data: string;
}

/** Splits a text stream into events, whatever the sizes of its chunks. Comments are left out. */
export class EventParser {
  private rest = "";
  private name = "";
  private data: string[] = [];

  /** Returns the events that end within this chunk. */
  push(chunk: string): ServerEvent[] {
    const lines = (this.rest + chunk).split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop() ?? "";
    return lines.flatMap((line) => this.line(line));
  }

  private line(line: string): ServerEvent[] {
    if (line === "") return this.dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return [];
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.name = value;
    if (field === "data") this.data.push(value);
    return [];
  }

  private dispatch(): ServerEvent[] {
    const event = { name: this.name || "message", data: this.data.join("\n") };
    const empty = this.data.length === 0;
    this.name = "";
    this.data = [];
    return empty ? [] : [event];
  }
}

/** Yields the events of a response as they arrive. */
export async function* eventsOf(response: Response): AsyncGenerator<ServerEvent> {
  if (response.body === null) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
