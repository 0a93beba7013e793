import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { type Answer, held, refusal, serve, unreachable } from "./fakeServer";

const POLL_MS = 2000;

/** The routes that every key may use. */
const OPEN: Record<string, Answer> = {
  "GET /v1/capabilities": () => ({ limits: {}, model: {} }),
  "GET /openapi.json": () => ({ paths: {} }),
};

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "setInterval", "clearInterval"] });
  vi.stubGlobal("document", { hidden: false });
  vi.stubGlobal("location", { origin: "http://127.0.0.1" });
});

afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
  vi.resetModules();
});

/** Starts the page with a key. A fresh copy of the modules, because they keep what they know of the server. */
async function started(key: string, routes: Record<string, Answer>) {
  const { keyState, keyWanted, setKey } = await import("../src/api/client");
  const server = await import("../src/core/server");
  const { vectors, vectorsAwaited } = await import("../src/core/server");
  setKey(key);
  const asked = serve(routes);
  await server.loadServer();
  await vi.advanceTimersByTimeAsync(100);
  return { ...server, asked, keyState, keyWanted, setKey, vectors, vectorsAwaited };
}

it("shows no vectors of the former key to one that may see nothing, and tries no more", async () => {
  const routes = {
    ...OPEN,
    "GET /v1/vectors": () => ({ data: [{ name: "sentiment" }] }),
    "GET /metrics": () => new Response(""),
  };
  const page = await started("reader", routes);
  expect(page.vectors.value).toHaveLength(1);
  const refused = () => refusal(403, "insufficient_scope");
  const asked = serve({ "GET /v1/capabilities": refused, "GET /v1/vectors": refused, "GET /metrics": refused });
  page.setKey("generator");
  await vi.advanceTimersByTimeAsync(10 * POLL_MS);
  expect(page.serverTrouble.value).toBeNull();
  expect(page.capabilities.value).not.toBeNull();
  expect([page.vectors.value, page.vectorsAwaited.value]).toEqual([null, false]); // not the list of the former key
  expect(asked.filter((one) => one.startsWith("GET /v1/"))).toEqual(["GET /v1/capabilities"]);
});

it.each([
  [403, "limited"],
  [401, "wanted"],
] as const)("waits for no vectors once the first key is refused with %i", async (status, state) => {
  const page = await started("generator", { "GET /v1/capabilities": () => refusal(status, "insufficient_scope") });
  expect([page.keyState.value, page.vectorsAwaited.value, page.serverTrouble.value]).toEqual([state, false, null]);
});

it("shows no vectors of the former key to one that is not known", async () => {
  const routes = {
    ...OPEN,
    "GET /v1/vectors": () => ({ data: [{ name: "sentiment" }] }),
    "GET /metrics": () => new Response(""),
  };
  const page = await started("reader", routes);
  expect(page.vectors.value).toHaveLength(1);
  serve({ "GET /v1/capabilities": () => refusal(401, "invalid_api_key") });
  page.setKey("mistyped");
  await vi.advanceTimersByTimeAsync(100);
  expect([page.vectors.value, page.keyWanted.value, page.serverTrouble.value]).toEqual([null, true, null]);
});

it.each([403, 401])("says no more that the server cannot be reached once it refuses with %i", async (status) => {
  const open = { ...OPEN, "GET /v1/vectors": () => ({ data: [] }) };
  const page = await started("reader", { ...open, "GET /metrics": unreachable });
  expect(page.serverTrouble.value).toContain("cannot be reached");
  serve({ ...open, "GET /metrics": () => refusal(status, "insufficient_scope") });
  await vi.advanceTimersByTimeAsync(POLL_MS);
  expect(page.serverTrouble.value).toBeNull();
});

it("reads model and library again once a server that was lost answers", async () => {
  const named = (name: string) => ({ "GET /v1/capabilities": () => ({ limits: {}, model: { name } }) });
  const routes = { ...OPEN, "GET /v1/vectors": () => ({ data: [] }), "GET /metrics": () => new Response("") };
  const page = await started("admin", { ...routes, ...named("old") });
  serve({ "GET /metrics": unreachable });
  await vi.advanceTimersByTimeAsync(POLL_MS);
  expect(page.serverTrouble.value).toContain("cannot be reached");
  const loading = () => refusal(503, "not_ready", { "Retry-After": "1" });
  const asked = serve({ ...routes, "GET /v1/capabilities": loading });
  await vi.advanceTimersByTimeAsync(2 * POLL_MS);
  expect(page.serverTrouble.value).not.toBeNull(); // its model is being loaded
  expect(asked.filter((one) => one === "GET /v1/capabilities").length).toBeLessThan(4); // one attempt at a time
  serve({ ...routes, ...named("new"), "GET /v1/vectors": () => ({ data: [{ name: "joy" }] }) });
  await vi.advanceTimersByTimeAsync(POLL_MS);
  expect(page.capabilities.value).toMatchObject({ model: { name: "new" } });
  expect([page.vectors.value?.length, page.serverTrouble.value]).toEqual([1, null]);
});

it.each([
  [{ max_page: 2 }, "2"],
  [{}, "200"],
])("asks for pages of lists that the server gives: %j", async (limits, size) => {
  const pages = [{ name: "joy" }, { name: "calm" }];
  const vectors = () => ({ data: [pages.pop()], next_cursor: pages.length > 0 ? "more" : null });
  const routes = { "GET /v1/capabilities": () => ({ limits, model: {} }), "GET /metrics": () => new Response("") };
  const page = await started("admin", { ...OPEN, ...routes, "GET /v1/vectors": vectors });
  expect(page.vectors.value).toHaveLength(2);
  const lists = page.asked.filter((one) => one.startsWith("GET /v1/vectors"));
  expect(lists).toEqual([`GET /v1/vectors?limit=${size}`, `GET /v1/vectors?limit=${size}&cursor=more`]);
});

it("keeps the most tokens in a second for each model", async () => {
  const kept = new Map<string, string>();
  vi.stubGlobal("localStorage", { getItem: (name: string) => kept.get(name) ?? null, setItem: (name: string, text: string) => kept.set(name, text) }); // biome-ignore format: one line
  let [tokens, time] = [0, 0];
  vi.stubGlobal("performance", { now: () => time });
  const metrics = () => {
    time += POLL_MS;
    return new Response(`steering_generated_tokens_total ${tokens}`);
  };
  const model = (fingerprint: string) => ({ "GET /v1/capabilities": () => ({ limits: {}, model: { fingerprint } }) });
  const routes = { ...OPEN, "GET /v1/vectors": () => ({ data: [] }), "GET /metrics": metrics };
  const page = await started("admin", { ...routes, ...model("a") });
  const fastest = async (written: number) => {
    tokens += written;
    await vi.advanceTimersByTimeAsync(POLL_MS);
    return page.load.value?.fastest;
  };
  expect([await fastest(200), await fastest(20)]).toEqual([100, 100]);
  page.capabilities.value = { limits: {}, model: { fingerprint: "b" } } as never;
  expect([await fastest(20), await fastest(0)]).toEqual([10, 10]);
  page.capabilities.value = { limits: {}, model: { fingerprint: "a" } } as never;
  expect(await fastest(0)).toBe(100);
});

it("does not ask a slow server for its gauges again before it has answered", async () => {
  const routes = { ...OPEN, "GET /v1/vectors": () => ({ data: [] }), "GET /metrics": () => held().promise };
  const page = await started("admin", routes);
  await vi.advanceTimersByTimeAsync(5 * POLL_MS);
  expect(page.asked.filter((one) => one === "GET /metrics")).toHaveLength(1);
});

it("says no more that the server cannot be reached once another answer asks for a key", async () => {
  const open = { ...OPEN, "GET /v1/vectors": () => ({ data: [] }) };
  const page = await started("reader", { ...open, "GET /metrics": unreachable });
  page.keyWanted.value = true;
  expect(page.serverTrouble.value).toBeNull();
});

it("tries again in one row only, also when the key was changed meanwhile", async () => {
  const page = await started("one", { "GET /v1/capabilities": unreachable });
  page.setKey("two");
  await vi.advanceTimersByTimeAsync(100);
  expect(page.serverTrouble.value).toContain("cannot be reached");
  const before = page.asked.length;
  await vi.advanceTimersByTimeAsync(3000);
  expect(page.asked.length - before).toBe(1);
});

it("takes no answer for another key as one for the key of now", async () => {
  const late = held();
  const open = { ...OPEN, "GET /v1/vectors": () => ({ data: [] }) };
  const page = await started("limited", { ...open, "GET /metrics": () => late.promise });
  serve({ ...open, "GET /metrics": () => new Response("steering_engine_running 2") });
  page.setKey("admin");
  await vi.advanceTimersByTimeAsync(POLL_MS);
  late.give(refusal(403, "insufficient_scope"));
  await vi.advanceTimersByTimeAsync(POLL_MS);
  expect(page.load.value?.running).toBe(2);
});

it("says that the server is gone to a key that may not read its gauges", async () => {
  const open = { ...OPEN, "GET /v1/vectors": () => ({ data: [] }) };
  const ready = { "GET /health/ready": () => ({ status: "ok" }) };
  const page = await started("limited", {
    ...open,
    ...ready,
    "GET /metrics": () => refusal(403, "insufficient_scope"),
  });
  await vi.advanceTimersByTimeAsync(POLL_MS);
  expect(page.serverTrouble.value).toBeNull();
  serve({ "GET /health/ready": unreachable });
  await vi.advanceTimersByTimeAsync(POLL_MS);
  expect(page.serverTrouble.value).toContain("cannot be reached");
  serve({ ...open, ...ready });
  await vi.advanceTimersByTimeAsync(2 * POLL_MS);
  expect(page.serverTrouble.value).toBeNull();
});
