import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import * as starters from "../src/compare/starters";
import { stopTasks } from "../src/core/jobs";
import { capabilities, library } from "../src/core/server";
import { events, FakeServer, held, refusal } from "./fakeServer";

const EXTRACT = "POST /v1/vectors/extract";
const job = { id: "job-1", status: "succeeded", progress: {} };
let server: FakeServer;
let stored: string[];

beforeEach(() => {
  stored = [];
  server = new FakeServer()
    .on(EXTRACT, extracted)
    .on("GET /v1/jobs/job-1/events", () => events(["done", job]))
    .on("GET /v1/vectors", () => ({ data: stored.map((name) => ({ name })), next_cursor: null }));
  capabilities.value = { concepts: ["joy", "refusal"], limits: {} } as never;
  library.data.value = { data: [], warnings: [] } as never;
  starters.leaveStarters();
});

afterEach(() => vi.unstubAllGlobals());

function extracted(body: unknown): object {
  stored.push((body as { name: string }).name);
  return job;
}

const made = () => server.seen.filter((one) => one === EXTRACT).length;

describe("starter vectors that are left to make", () => {
  it("are none after all were made", async () => {
    const first = vi.fn();
    await starters.makeStarters(first);
    expect([stored, starters.startersLeft.value]).toEqual([["joy", "refusal"], false]);
    expect(first).toHaveBeenCalledTimes(1);
  });

  it("after an error are made on request, and the error goes", async () => {
    server.on(EXTRACT, (body) => (stored.length === 0 ? extracted(body) : refusal(422, "invalid_request")));
    await starters.makeStarters(() => {});
    expect([stored, starters.startersLeft.value]).toEqual([["joy"], true]);
    expect(starters.starterError.value).toMatchObject({ code: "invalid_request" });
    server.on(EXTRACT, extracted);
    await Promise.all([1, 2].map(() => starters.makeStarters(() => {}))); // two clicks
    expect([stored, made()]).toEqual([["joy", "refusal"], 3]);
    expect([starters.starterError.value, starters.startersLeft.value]).toEqual([null, false]);
  });

  it("after a stop are left, and can be left so", async () => {
    server
      .on(EXTRACT, (body) => ({ ...extracted(body), status: "running" }))
      .on("GET /v1/jobs/job-1/events", () => held().promise)
      .on("DELETE /v1/jobs/job-1", () => ({ ...job, status: "cancelled" }));
    const making = starters.makeStarters(() => {});
    await vi.waitFor(() => expect(made()).toBe(1));
    stopTasks("compare");
    await making;
    expect([stored, starters.startersLeft.value, starters.starterError.value]).toEqual([["joy"], true, null]);
    starters.leaveStarters();
    expect(starters.startersLeft.value).toBe(false);
  });

  it("do not include one that was stored before the library could not be read", async () => {
    server.on("GET /v1/vectors", () => refusal(422, "invalid_request"));
    await starters.makeStarters(() => {});
    expect([stored, starters.startersLeft.value]).toEqual([["joy"], true]);
    server.on("GET /v1/vectors", () => ({ data: stored.map((name) => ({ name })), next_cursor: null }));
    await starters.makeStarters(() => {});
    expect(stored).toEqual(["joy", "refusal"]);
  });
});
