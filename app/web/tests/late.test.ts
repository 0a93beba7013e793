import "./fakeAddress";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ComparisonRun, emptyPane } from "../src/compare/run";
import { capabilities } from "../src/core/server";
import * as space from "../src/space/store";
import { announcement } from "../src/ui/parts";
import { events, FakeServer, held, refusal } from "./fakeServer";

const COMPARE = "POST /v1/compare";
const READOUT = "POST /v1/readout";
let server: FakeServer;

beforeEach(() => {
  server = new FakeServer();
  vi.stubGlobal("requestAnimationFrame", (show: () => void) => setTimeout(show));
});

afterEach(() => vi.unstubAllGlobals());

const bodyOf = (prompt: string) => ({ prompt, n: 1, arms: [{ name: "normal" }] }) as never;
const token = (text: string): [string, unknown] => ["token", { arm: "normal", choice: 0, id: 1, text }];
const complete = (text: string): [string, unknown] => ["done", { arms: [{ name: "normal", choices: [{ text }] }] }];
const bytes = ([name, data]: [string, unknown]) =>
  new TextEncoder().encode(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
type Writer = WritableStreamDefaultWriter<Uint8Array>;
const textOf = (run: ComparisonRun) => run.panes.value[0]?.choices[0]?.text;

/** Starts a run whose first token is shown and whose answer goes on. */
async function begun(run: ComparisonRun, body: never) {
  const answer = new TransformStream<Uint8Array, Uint8Array>();
  server.on(COMPARE, () => new Response(answer.readable));
  const promise = run.start(body);
  const writer = answer.writable.getWriter();
  void writer.write(bytes(token("begun")));
  await vi.waitFor(() => expect(textOf(run)).toBe("begun"));
  return { promise, writer };
}

describe("what a comparison was asked with", () => {
  it("stays when a run is stopped before its first token", async () => {
    const [first, second] = [bodyOf("first"), bodyOf("second")];
    const run = new ComparisonRun();
    server.on(COMPARE, () => events(token("yes")));
    await run.start(first);
    server.on(COMPARE, () => held().promise);
    const stopped = run.start(second);
    await vi.waitFor(() => expect(server.seen).toHaveLength(2));
    run.stop();
    await stopped;
    expect([textOf(run), run.asked.value]).toEqual(["yes", first]);
    expect(run.asked.value).toBe(first);
  });

  it("is that of the panes, also when they fail later", async () => {
    const body = bodyOf("first");
    const run = new ComparisonRun();
    const { promise: failed, writer } = await begun(run, body);
    expect(run.asked.value).toBe(body);
    void writer.abort(new Error("broken")).catch(() => {});
    await failed;
    expect(run.asked.value).toBe(body);
    expect(run.error.value).toBeInstanceOf(Error);
  });
});

describe("a run of a comparison", () => {
  it("that is closed stays closed while its answer ends, and so does one that failed", async () => {
    const run = new ComparisonRun();
    const { promise: closed, writer } = await begun(run, bodyOf("first"));
    run.close();
    await writer.write(bytes(token(" no")));
    await writer.close();
    await closed;
    await new Promise((done) => setTimeout(done, 5));
    expect([run.panes.value, run.running.value, run.error.value]).toEqual([[], false, null]);
    server.on(COMPARE, () => refusal(422, "invalid_request"));
    await run.start(bodyOf("second"));
    expect(run.error.value).not.toBeNull();
    run.close();
    expect(run.error.value).toBeNull();
  });

  it.each([
    ["ends", (writer: Writer) => writer.close()],
    ["breaks", (writer: Writer) => writer.abort(new TypeError("network error"))],
  ])("whose answer %s before it is complete says so, and keeps what was written", async (_, cut) => {
    const run = new ComparisonRun();
    const { promise, writer } = await begun(run, bodyOf("first"));
    await cut(writer).catch(() => {});
    await promise;
    expect([textOf(run), run.error.value]).toMatchObject(["begun", { message: expect.stringContaining("complete") }]);
  });

  it("that another one replaced leaves the error to it", async () => {
    const run = new ComparisonRun();
    const { promise: replaced, writer } = await begun(run, bodyOf("first"));
    server.on(COMPARE, () => events(token("yes"), complete("yes")));
    const newer = run.start(bodyOf("second"));
    void writer.abort(new Error("broken")).catch(() => {});
    await Promise.all([replaced, newer]);
    expect([textOf(run), run.error.value]).toEqual(["yes", null]);
  });
});

it("announces that a run is complete, or was stopped; a failure is an alert", async () => {
  const run = new ComparisonRun();
  server.on(COMPARE, () => events(complete("yes")));
  await run.start(bodyOf("first"));
  expect(announcement.value).toBe("The answers are complete.");
  server.on(COMPARE, () => held().promise);
  const stopped = run.start(bodyOf("second"));
  expect(announcement.value).toBe("Writing the answers.");
  run.stop();
  await stopped;
  expect(announcement.value).toBe("Stopped.");
  server.on(COMPARE, () => refusal(422, "invalid_request"));
  await run.start(bodyOf("third"));
  expect(announcement.value).toBe("Writing the answers.");
});

describe("the threads of a conversation", () => {
  const names = ["normal", "steered"];
  const threads = { n: 1, baseline: "normal", threads: {}, arms: names.map((name) => ({ name })) } as never;

  it("are stopped where one of them fails, and the failure alone is reported", async () => {
    const run = new ComparisonRun();
    let stopped = false;
    server.on(COMPARE, (body, { signal }) => {
      if ((body as { baseline: string }).baseline === "normal") return refusal(422, "invalid_request");
      signal.addEventListener("abort", () => {
        stopped = true;
      });
      return held().promise;
    });
    expect(await run.start(threads)).toBe(false);
    expect([stopped, run.running.value, run.error.value]).toMatchObject([true, false, { code: "invalid_request" }]);
    expect(announcement.value).toContain("Writing the answers.");
  });
});

describe("the plain answer that was shown before", () => {
  const ask = async (text: string, fingerprint: string, mean: number) => {
    capabilities.value = { model: { fingerprint }, limits: {} } as never;
    const metrics = { readout: { joy: { mean } }, warnings: [] };
    const steering = { fingerprint: "", applied: [], warnings: [] };
    const arms = [{ name: "normal", choices: [{ text, finish_reason: "stop" }], metrics, steering }];
    server.on(COMPARE, () => events(["done", { arms }]));
    const run = new ComparisonRun();
    await run.start({ prompt: "Kept?", n: 1, baseline: "normal", arms: [{ name: "normal" }] } as never);
    return [textOf(run), run.panes.value[0]?.metrics?.readout.joy?.mean];
  };

  afterEach(() => {
    capabilities.value = null;
  });

  it("stays for the same model, with the readings of now where it is the same text, and is not another model's", async () => {
    expect(await ask("first", "a", 1)).toEqual(["first", 1]);
    expect(await ask("rounded", "a", 2)).toEqual(["first", 1]);
    expect(await ask("first", "a", 3)).toEqual(["first", 3]);
    expect(await ask("of another", "b", 4)).toEqual(["of another", 4]);
  });
});

describe("an answer that takes the place of one", () => {
  it("leaves nothing that was measured against the plain text before", () => {
    const run = new ComparisonRun();
    const against = { readout_shift: {} } as never;
    const panes = ["normal", "steered"].map((name) => ({ ...emptyPane(name, 1), against }));
    const asked = { baseline: "normal" } as never;
    const left = (name: string) => {
      run.put(asked, panes);
      run.replace(name, 0, { text: "new", tokens: [], finish: "stop" }, asked);
      return run.panes.value.map((pane) => pane.against);
    };
    expect([left("normal"), left("steered")]).toEqual([
      [null, null],
      [against, null],
    ]);
  });
});

describe("scores of a vector in Space", () => {
  const readout = (name: string, mean: number) => ({ texts: [{ readout: { [name]: { 1: { mean } } } }] });
  const shown = { set: { texts: ["a"], labels: null }, answer: { layers: [] }, vector: "refusal" } as never;

  beforeEach(() => {
    space.vector.value = "refusal";
    space.drawn.value = shown;
    space.scores.value = null;
    space.error.value = space.scoresError.value = null;
  });

  it("are shown under this vector", async () => {
    server.on(READOUT, () => readout("refusal", 2));
    await space.loadScores();
    expect(space.scores.value).toEqual({ vector: "refusal", byLayer: new Map([[1, [2]]]) });
  });

  it("that arrive under another vector are not shown, nor is their failure", async () => {
    for (const answer of [readout("refusal", 2), refusal(500, "internal_error")]) {
      const late = held();
      server.on(READOUT, () => late.promise);
      const load = space.loadScores();
      space.chooseVector("sentiment");
      late.give(answer);
      await load;
      expect([space.scores.value, space.scoresError.value]).toEqual([null, null]);
      space.chooseVector("refusal");
    }
  });

  it("that fail are reported", async () => {
    server.on(READOUT, () => refusal(422, "invalid_request"));
    await space.loadScores();
    expect(space.scoresError.value).toMatchObject({ code: "invalid_request" });
  });
});

describe("a map of texts", () => {
  const map = { embedding: null, layers: [{ layer: 0, points: [[0, 0]] }], warnings: [] };
  const drawOwn = async (texts: string) => {
    space.setName.value = "own";
    space.ownText.value = texts;
    server.on("POST /v1/latent-space", () => map);
    await space.draw();
  };

  afterEach(() => {
    space.lasso([]);
    space.drawn.value = space.picked.value = space.vector.value = null;
    space.colourBy.value = "label";
  });

  it("can be stopped while the scores are read", async () => {
    space.colourBy.value = "score";
    space.vector.value = "refusal";
    server.on(READOUT, () => held().promise);
    const drawing = drawOwn("a\nb\nc");
    await vi.waitFor(() => expect(server.seen).toContain(READOUT));
    space.stopDrawing();
    await drawing;
    expect([space.busy.value, space.scoresBusy.value, space.error.value]).toEqual([false, false, null]);
    expect(space.drawn.value).not.toBeNull();
  });

  it("is the one before once a drawing is stopped, and the texts that were typed stay", async () => {
    await drawOwn("a\nb\nc");
    const late = held();
    space.method.value = "umap";
    space.ownText.value = "d\ne\nf";
    server.on("POST /v1/latent-space", () => late.promise);
    const drawing = space.draw();
    space.stopDrawing();
    await drawing;
    expect([space.method.value, space.ownText.value]).toEqual(["pca", "d\ne\nf"]);
  });

  it("keeps the selected texts as long as they are the same texts", async () => {
    await drawOwn("a\nb\nc");
    space.select(1, true);
    space.picked.value = 2;
    await drawOwn("a\nb\nc\n");
    expect([space.lassoed.value, space.picked.value]).toEqual([[1], 2]);
    await drawOwn("a\nb\nd");
    expect([space.lassoed.value, space.picked.value]).toEqual([[], null]);
  });
});

describe("a picture of the space", () => {
  it("that another one replaced leaves the error to it", async () => {
    const late = held();
    server.on("GET /v1/concepts/sentiment", () => late.promise);
    space.setName.value = "sentiment";
    const replaced = space.draw();
    space.setName.value = "own";
    space.ownText.value = "only one text";
    await space.draw();
    const error = space.error.value;
    expect(error).toBeInstanceOf(Error);
    late.give(refusal(500, "internal_error"));
    await replaced;
    expect(space.error.value).toBe(error);
  });
});
