import "./fakeAddress";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { api, dataOf, type Job } from "../src/api/client";
import { begin, jobs, openJobs, otherJobs, runToEnd, type StartJob, stopTasks, taskOf, tasks } from "../src/core/jobs";
import { open } from "../src/core/places";
import { card } from "../src/core/server";
import { measure, running, working } from "../src/make/work";
import { makeVector } from "../src/space/Selection";
import { events, FakeServer, held, refusal, unreachable } from "./fakeServer";

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

  it("is followed again after the server was lost and started again, which knows why it has ended", async () => {
    const failed = { ...job("failed"), error: { code: "interrupted", message: "the server stopped" } };
    const answers = [
      unreachable,
      () => refusal(503, "not_ready", { "x-should-retry": "false" }),
      () => events(["done", failed]),
    ];
    const server = serverWithJob().on(FOLLOW, () => answers.shift()!());
    const run = runToEnd(start, () => {}, new AbortController().signal);
    const ended = expect(run).rejects.toThrow("the server stopped");
    await vi.advanceTimersByTimeAsync(3000);
    await ended;
    expect(server.seen).toEqual([EXTRACT, FOLLOW, FOLLOW, FOLLOW]);
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

const about = { place: "make", kind: "extract", vector: "joy" } as const;

afterEach(() => {
  tasks.value = [];
  card.value = null;
  jobs.forget();
});

describe("a vector that is made", () => {
  it("opens its card for a person who waits for it", async () => {
    serverWithJob();
    open("make");
    expect(await begin(about, start).end).toBe(true);
    expect([card.value, tasks.value.length, tasks.value[0]?.ended.value]).toEqual(["joy", 1, true]);
  });

  it("leaves Make free while one is measured, and another card where it is", async () => {
    const late = held();
    const server = serverWithJob()
      .on("POST /v1/evaluations", () => job("queued"))
      .on(FOLLOW, () => late.promise);
    open("make");
    card.value = "calm";
    measure("joy");
    expect([running.value, working.value]).toEqual([false, true]);
    await vi.waitFor(() => expect(server.seen).toContain(FOLLOW));
    late.give(events(["done", job("succeeded")]));
    await taskOf("make")?.end;
    expect([card.value, working.value]).toEqual(["calm", false]);
  });

  it("does not move a person who is in another place, and waits in the tray", async () => {
    serverWithJob();
    open("compare");
    expect(await makeVector("joy", [0], ["a", "b"]).end).toBe(true);
    expect([card.value, location.hash, taskOf("space")?.about.vector]).toEqual([null, "#/compare", "joy"]);
  });

  it("is made from the selected texts against the others", async () => {
    const server = serverWithJob();
    await makeVector("joy", [1], ["a", "b", "c"]).end;
    expect(server.bodies[0]).toEqual({ name: "joy", positive: ["b"], negative: ["a", "c"] });
  });

  it("shows that it is stopping, and why it could not be stopped", async () => {
    const refused = held();
    const server = serverWithJob()
      .on(FOLLOW, () => held().promise)
      .on(CANCEL, () => refused.promise);
    const task = begin(about, start);
    await vi.waitFor(() => expect(server.seen).toContain(FOLLOW));
    stopTasks("make");
    expect(task.step.message).toBe("stopping");
    refused.give(refusal(403, "insufficient_scope"));
    expect(await task.end).toBe(false);
    expect([task.ended.value, task.error.value]).toMatchObject([true, { code: "insufficient_scope" }]);
  });

  it("that fails keeps its error until the next one is begun", async () => {
    const server = serverWithJob().on(EXTRACT, () => refusal(422, "invalid_request"));
    await begin(about, start).end;
    expect(taskOf("make")?.error.value).toMatchObject({ code: "invalid_request" });
    server.on(EXTRACT, () => job("queued"));
    await begin(about, start).end;
    expect([tasks.value.length, taskOf("make")?.error.value]).toEqual([1, null]);
  });
});

describe("the jobs of the server", () => {
  it("are counted with those of this tab, each once", async () => {
    serverWithJob()
      .on(FOLLOW, () => held().promise)
      .on("GET /v1/jobs", () => ({ data: [job("running"), { ...job("running"), id: "other" }, job("failed")] }));
    const task = begin(about, start);
    await vi.waitFor(() => expect(task.job.value?.id).toBe("job-1"));
    await jobs.load();
    expect([openJobs.value, otherJobs.value.map(({ id }) => id)]).toEqual([2, ["other"]]);
  });
});

describe("a job that runs when the page is loaded again", () => {
  const session = new Map<string, string>();

  beforeEach(() => {
    vi.stubGlobal("sessionStorage", {
      getItem: (name: string) => session.get(name) ?? null,
      setItem: (name: string, text: string) => session.set(name, text),
      removeItem: (name: string) => session.delete(name),
    });
    vi.resetModules();
  });

  const loaded = async () => {
    vi.resetModules();
    return import("../src/core/jobs");
  };

  it("is followed to its end by the new page, with its name, and is forgotten then", async () => {
    const server = serverWithJob().on(FOLLOW, () => held().promise);
    const before = await loaded();
    const left = before.begin(about, start);
    await vi.waitFor(() => expect(left.job.value).not.toBeNull());
    server.on("GET /v1/jobs/job-1", () => job("running")).on(FOLLOW, () => events(["done", job("succeeded")]));
    const after = await loaded();
    after.resumeJobs();
    expect(after.tasks.value[0]?.about).toEqual(about);
    expect(await after.tasks.value[0]?.end).toBe(true);
    await vi.waitFor(() => expect(session.get("steering-server.jobs") ?? "[]").toBe("[]"));
  });

  it("is followed also where the page was left before the server had answered", async () => {
    const server = serverWithJob().on(EXTRACT, () => held().promise);
    (await loaded()).begin(about, start);
    const own = { ...job("running"), kind: "extract", subject: "joy" };
    const others = [{ subject: "calm" }, { status: "failed" }, { kind: "dose_response" }].map((one) => ({ ...own, ...one, id: "other" })); // biome-ignore format: one line
    server.on("GET /v1/jobs", () => ({ data: [...others, own] }));
    const after = await loaded();
    after.resumeJobs();
    expect(await after.tasks.value[0]?.end).toBe(true);
    expect([after.tasks.value[0]?.about, server.seen.includes(FOLLOW)]).toEqual([about, true]);
    await vi.waitFor(() => expect(session.get("steering-server.jobs") ?? "[]").toBe("[]"));
  });

  it.each([
    ["is forgotten where the server never began it", () => ({ data: [] }), 0],
    ["stays saved while the server cannot say", unreachable, 1],
  ])("%s", async (_, answer, left) => {
    session.set("steering-server.jobs", JSON.stringify([{ ...about, id: "" }]));
    new FakeServer().on("GET /v1/jobs", answer);
    const page = await loaded();
    page.resumeJobs();
    expect(await page.tasks.value[0]?.end).toBe(false);
    await Promise.resolve();
    expect([page.tasks.value.length, JSON.parse(session.get("steering-server.jobs") ?? "[]")]).toEqual([left, Array(left).fill({ ...about, id: "" })]); // biome-ignore format: one line
  });

  it("is forgotten where the server does not know it any more", async () => {
    session.set("steering-server.jobs", JSON.stringify([{ ...about, id: "gone" }, { id: 7 }]));
    new FakeServer();
    const page = await loaded();
    page.resumeJobs();
    await vi.waitFor(() => expect(page.tasks.value).toEqual([]));
    expect(session.get("steering-server.jobs")).toBe("[]");
  });
});
