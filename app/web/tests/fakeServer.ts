import { vi } from "vitest";

type Answer = (body: unknown) => unknown;

/** Answers requests in place of a server. An answer may be a promise; a request that is aborted meanwhile fails as in a browser. */
export class FakeServer {
  /** What was asked, as `METHOD /path`. */
  readonly seen: string[] = [];
  readonly bodies: unknown[] = [];
  private readonly answers = new Map<string, Answer>();

  constructor() {
    vi.stubGlobal("fetch", (request: Request) => this.respond(request));
  }

  /** States the answer of a route: a Response, or what is sent as JSON. */
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
    const route = `${request.method} ${new URL(request.url).pathname}`;
    this.seen.push(route);
    const body: unknown = request.method === "POST" ? await request.json() : null;
    this.bodies.push(body);
    const answer = this.answers.get(route);
    if (!answer) return refusal(404, "not_found");
    const found = await answer(body);
    return found instanceof Response ? found : Response.json(found);
  }
}

/** An error answer of the server. */
export function refusal(status: number, code: string, headers: Record<string, string> = {}): Response {
  return Response.json({ error: { message: `refused: ${code}`, type: "x", param: null, code } }, { status, headers });
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
