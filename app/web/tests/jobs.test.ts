import "./fakeAddress";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { api, dataOf } from "../src/api/client";
import { ApiError } from "../src/api/errors";
import type { Job } from "../src/api/types";
import { open, place } from "../src/frame/places";
import { runToEnd, type StartJob } from "../src/jobs/watch";
import { error, made, makeByJob, running, stop } from "../src/make/work";
import * as making from "../src/space/making";
import { events, FakeServer, held, refusal } from "./fakeServer";

const EXTRACT = "POST /v1/vectors/extract";
const CANCEL = "DELETE /v1/jobs/job-1";
const FOLLOW = "GET /v1/jobs/job-1/events";
const job = (status: string) => ({ id: "job-1", status, progress: { message: "reading", done: 1, total: 2 } });
const start: StartJob = (options) =>
  dataOf<Job>(api.POST("/v1/vectors/extract", { body: { name: "joy", concept: "joy" }, ...options }));

afterEach(() => vi.unstubAllGlobals());

function serverWithJob(): FakeServer {
  return new FakeServer()
    .on(EXTRACT, () => job("queued"))
    .on(FOLLOW, () => events(["progress", job("running")], ["done", job("succeeded")]))
    .on(CANCEL, () => job("cancelled"))
    .on("GET /v1/vectors", () => ({ data: [{ name: "joy" }], next_cursor: null }));
}

describe("a job", () => {
  it("is followed to its end", async () => {
    serverWithJob();
    const seen: string[] = [];
    const ended = await runToEnd(start, (now) => seen.push(now.status), new AbortController().signal);
    expect([ended.status, seen]).toEqual(["succeeded", ["queued", "running", "succeeded"]]);
  });
});

describe("a job that takes longer than the server keeps a stream open", () => {
  beforeEach(() => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] }));
  afterEach(() => void vi.useRealTimers());

  it("is followed again, until it ends", async () => {
    const streams = [
      events(["progress", job("running")], ["error", { error: { code: "request_timed_out", message: "too long" } }]),
      events(["done", job("succeeded")]),
    ];
    const server = serverWithJob()
      .on(FOLLOW, () => streams.shift())
      .on("GET /v1/jobs/job-1", () => job("running"));
    const run = runToEnd(start, () => {}, new AbortController().signal);
    await vi.advanceTimersByTimeAsync(2000);
    expect((await run).status).toBe("succeeded");
    expect(server.seen).toEqual([EXTRACT, FOLLOW, "GET /v1/jobs/job-1", FOLLOW]);
  });
});

describe("a job that is stopped", () => {
  it("while its request waits to be repeated is not asked for again", async () => {
    const server = serverWithJob().on(EXTRACT, () => refusal(503, "draining", { "Retry-After": "20" }));
    const stopper = new AbortController();
    const run = runToEnd(start, () => {}, stopper.signal);
    await vi.waitFor(() => expect(server.seen).toEqual([EXTRACT]));
    await Promise.resolve();
    stopper.abort();
    await expect(run).rejects.toMatchObject({ name: "AbortError" });
    expect(server.seen).toEqual([EXTRACT]);
  });

  it("while the server accepts it is cancelled", async () => {
    const accepted = held();
    const server = serverWithJob().on(EXTRACT, () => accepted.promise);
    const stopper = new AbortController();
    const run = runToEnd(start, () => {}, stopper.signal);
    await vi.waitFor(() => expect(server.seen).toEqual([EXTRACT]));
    stopper.abort();
    accepted.give(job("queued"));
    await expect(run).rejects.toMatchObject({ name: "AbortError" });
    expect(server.seen).toEqual([EXTRACT, CANCEL]);
  });

  it.each([
    [job("cancelled"), { name: "AbortError" }],
    [refusal(403, "insufficient_scope"), { code: "insufficient_scope" }],
  ])("while it runs is cancelled, and a refused cancellation is reported (%#)", async (answer, expected) => {
    const server = serverWithJob()
      .on(FOLLOW, () => held().promise)
      .on(CANCEL, () => answer);
    const stopper = new AbortController();
    const run = runToEnd(start, () => {}, stopper.signal);
    await vi.waitFor(() => expect(server.seen).toContain(FOLLOW));
    stopper.abort();
    await expect(run).rejects.toMatchObject(expected);
    expect(server.seen).toEqual([EXTRACT, FOLLOW, CANCEL]);
  });

  it("after it succeeded is returned", async () => {
    const server = serverWithJob()
      .on(FOLLOW, () => held().promise)
      .on(CANCEL, () => job("succeeded"));
    const stopper = new AbortController();
    const run = runToEnd(start, () => {}, stopper.signal);
    await vi.waitFor(() => expect(server.seen).toContain(FOLLOW));
    stopper.abort();
    expect((await run).status).toBe("succeeded");
  });
});

describe("a vector made in Make", () => {
  it("shows that it is stopping, and why it could not be stopped", async () => {
    const refused = held();
    const server = serverWithJob()
      .on(FOLLOW, () => held().promise)
      .on(CANCEL, () => refused.promise);
    const run = makeByJob("extract", "joy", start);
    await vi.waitFor(() => expect(server.seen).toContain(FOLLOW));
    stop();
    expect(running.value?.message).toBe("Stopping");
    refused.give(refusal(403, "insufficient_scope"));
    await run;
    expect([running.value, made.value]).toEqual([null, null]);
    expect(error.value).toBeInstanceOf(ApiError);
  });
});

describe("a vector of a selection in Space", () => {
  it("does not move a user who is in another place, and waits to be shown", async () => {
    serverWithJob();
    open("compare");
    await making.makeVector("joy", ["a"], ["b"]);
    expect([making.stored.value, made.value, place.value]).toEqual(["joy", null, "compare"]);
    making.openCard("joy");
    expect([making.stored.value, made.value, place.value]).toEqual([null, "joy", "make"]);
  });

  it("shows its card to a user who waits in Space", async () => {
    serverWithJob();
    open("space");
    making.name.value = "grief";
    await making.makeVector("grief", ["a"], ["b"]);
    expect([making.stored.value, made.value, place.value]).toEqual([null, "grief", "make"]);
    expect(making.name.value).toBe("");
  });

  it("is stored although the library cannot be read again: its card says so, or Space to a user who left", async () => {
    serverWithJob().on("GET /v1/vectors", () => refusal(422, "invalid_request"));
    const unread = "grief was stored, but the library could not be read again.";
    open("space");
    await making.makeVector("grief", ["a"], ["b"]);
    expect([making.error.value, made.value, place.value]).toEqual([null, "grief", "make"]);
    expect(String(error.value)).toContain(unread);
    await making.makeVector("grief", ["a"], ["b"]);
    expect([making.stored.value, place.value]).toEqual(["grief", "make"]);
    expect(String(making.error.value)).toContain(unread);
  });

  it("has a card without an earlier error of Make", async () => {
    serverWithJob();
    open("space");
    error.value = new Error("earlier");
    await making.makeVector("joy", ["a"], ["b"]);
    expect([error.value, place.value]).toEqual([null, "make"]);
    error.value = new Error("earlier");
    making.openCard("joy");
    expect(error.value).toBeNull();
  });
});

describe("a vector of a selection that cannot be made", () => {
  it("keeps its error, and can be stopped", async () => {
    const server = serverWithJob().on(EXTRACT, () => refusal(422, "invalid_request"));
    await making.makeVector("joy", ["a"], ["b"]);
    expect(making.error.value).toMatchObject({ code: "invalid_request" });
    server.on(EXTRACT, () => job("queued")).on(FOLLOW, () => held().promise);
    const run = making.makeVector("joy", ["a"], ["b"]);
    await vi.waitFor(() => expect(server.seen).toContain(FOLLOW));
    making.stopMaking();
    await run;
    expect(server.seen.at(-1)).toBe(CANCEL);
    expect([making.making.value, making.error.value, making.stored.value]).toEqual([null, null, null]);
  });
});
