import { vi } from "vitest";

/** Answers a request, or throws as `fetch` does where no server is reached. */
export type Route = (request: Request) => Response | Promise<Response>;

/** Replaces `fetch` by routes such as `GET /v1/jobs`. Returns what was asked, in order. */
export function serve(routes: Record<string, Route>): string[] {
  const asked: string[] = [];
  vi.stubGlobal("fetch", async (input: Request | string, init?: RequestInit) => {
    const request = new Request(typeof input === "string" ? `http://127.0.0.1${input}` : input, init);
    const { pathname, search } = new URL(request.url);
    asked.push(`${request.method} ${pathname}${search}`);
    const route = routes[`${request.method} ${pathname}`];
    if (!route) throw new TypeError(`no route for ${request.method} ${pathname}`);
    return route(request);
  });
  return asked;
}

/** Answers with JSON; `of` is called for each request, so that the answer may change. */
export function json(of: () => unknown): Route {
  return () => Response.json(of());
}

/** Answers with an error, which the client does not retry. */
export function refuse(status: number, code: string): Route {
  const error = { message: `refused: ${code}`, type: "x", param: null, code };
  return () => Response.json({ error }, { status, headers: { "x-should-retry": "false" } });
}

export function unreachable(): never {
  throw new TypeError("fetch failed");
}

/** Answers when the test says so. */
export class Held {
  private readonly waiting: ((response: Response) => void)[] = [];

  readonly route: Route = () => new Promise((resolve) => this.waiting.push(resolve));

  /** Answers the oldest request that waits. */
  answer(body: unknown, status = 200): void {
    this.waiting.shift()?.(Response.json(body, { status }));
  }
}

/** Lets everything go on that waits for no timer; the timers must be fake. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await vi.advanceTimersByTimeAsync(0);
}
