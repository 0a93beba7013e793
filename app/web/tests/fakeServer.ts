import { vi } from "vitest";

/** Answers a request with a Response, or with what is sent as JSON; throws as `fetch` does where no server is reached. */
export type Answer = (body: unknown, request: Request) => unknown;

/** Answers requests in place of a server. An answer may be a promise; a request that is aborted meanwhile fails as in a browser. */
export class FakeServer {
  /** What was asked, as `METHOD /path` with the query. */
  readonly seen: string[] = [];
  readonly bodies: unknown[] = [];
  private readonly answers: Map<string, Answer>;

  /** Takes the place of the server before. Routes are such as `GET /v1/jobs`. */
  constructor(routes: Readonly<Record<string, Answer>> = {}) {
    this.answers = new Map(Object.entries(routes));
    vi.stubGlobal("fetch", (input: Request | string, init?: RequestInit) =>
      this.respond(new Request(typeof input === "string" ? new URL(input, "http://127.0.0.1") : input, init)),
    );
  }

  /** States the answer of a route. */
  on(route: string, answer: Answer): this {
    this.answers.set(route, answer);
    return this;
  }

  private async respond(request: Request): Promise<Response> {
    request.signal.throwIfAborted();
    const aborted = new Promise<never>((_, reject) => {
      request.signal.addEventListener("abort", () => reject(request.signal.reason), { once: true });
    });
    return Promise.race([this.answer(request), aborted]);
  }

  private async answer(request: Request): Promise<Response> {
    const { pathname, search } = new URL(request.url);
    const route = `${request.method} ${pathname}`;
    this.seen.push(route + search);
    const body: unknown = ["POST", "PUT"].includes(request.method) ? await request.json() : null;
    this.bodies.push(body);
    const answer = this.answers.get(route);
    if (!answer) return refusal(404, "not_found");
    const found = await answer(body, request);
    return found instanceof Response ? found : Response.json(found);
  }
}

/** Puts a server with these routes in the place of the one before. Returns what it is asked, in order. */
export function serve(routes: Readonly<Record<string, Answer>>): string[] {
  return new FakeServer(routes).seen;
}

/** An error answer of the server. */
export function refusal(status: number, code: string, headers: Record<string, string> = {}): Response {
  return Response.json({ error: { message: `refused: ${code}`, type: "x", param: null, code } }, { status, headers });
}

export function unreachable(): never {
  throw new TypeError("fetch failed");
}

/** A stream of server-sent events that ends. */
export function events(...all: readonly [string, unknown][]): Response {
  return new Response(all.map(([name, data]) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`).join(""));
}

/** An answer that is given later. */
export function held<T = unknown>(): { promise: Promise<T>; give: (value: T) => void } {
  let give: (value: T) => void = () => {};
  const promise = new Promise<T>((resolve) => {
    give = resolve;
  });
  return { promise, give };
}

/** Lets everything go on that waits for no timer; the timers must be fake. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await vi.advanceTimersByTimeAsync(0);
}
