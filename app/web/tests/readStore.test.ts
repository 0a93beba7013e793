import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Vector } from "../src/api/client";
import { library } from "../src/core/server";
import { onKey, useActions } from "../src/frame/dialogs";
import * as store from "../src/read/store";
import { FakeServer, held, refusal } from "./fakeServer";

const EXPLAIN = "POST /v1/explain";
const READ_OUT = "POST /v1/readout";
const WARNING = "left out, because their stored bytes are damaged: calm@1; restore or delete them";
const explained = {
  texts: [{ concepts: [{ vector: "joy@1", layer: 3, score: 1, z: 2, tokens: [] }] }],
  warnings: [WARNING],
};

/** Scores every text with its number of characters, so that one can see whose scores are shown. */
function readOut(body: unknown): object {
  const { texts, layers } = body as { texts: string[]; layers?: "all" };
  const text = texts[0] ?? "";
  const scores = { scores: [text.length] };
  return {
    texts: [{ tokens: [{ text }], readout: { joy: layers === "all" ? { 3: scores, 4: scores } : { 3: scores } } }],
  };
}

let server: FakeServer;

beforeEach(() => {
  server = new FakeServer().on(EXPLAIN, () => explained).on(READ_OUT, readOut);
  library.data.value = { data: [{ name: "joy" } as Vector], warnings: [] } as never;
  store.kind.value = "text";
  store.reading.value = null;
  store.error.value = null;
});

afterEach(() => vi.unstubAllGlobals());

const shownText = () => store.reading.value?.turns[0]?.tokens[0]?.text;
const scoreAt = (layer: number) => store.reading.value?.scores.get("joy")?.get(layer);

describe("a reading", () => {
  it("is of the text that was asked for, whatever is typed meanwhile", async () => {
    const late = held();
    server.on(EXPLAIN, () => late.promise);
    store.text.value = "old";
    const run = store.read();
    store.text.value = "another text";
    store.kind.value = "conversation";
    late.give(explained);
    await run;
    expect(server.bodies.map((body) => (body as { texts?: string[] }).texts)).toEqual([["old"], ["old"]]);
    expect([shownText(), scoreAt(3)]).toEqual(["old", [3]]);
  });

  it("at every layer is of the same text, and clears an earlier error", async () => {
    store.text.value = "old";
    await store.read();
    store.text.value = "another text";
    server.on(READ_OUT, () => refusal(422, "invalid_request"));
    await store.readAllLayers("joy");
    expect(store.error.value).toMatchObject({ code: "invalid_request" });
    server.on(READ_OUT, readOut);
    await store.readAllLayers("joy");
    expect([scoreAt(3), scoreAt(4), store.error.value]).toEqual([[3], [3], null]);
  });

  it("is first shown at the layer at which its concept stands out", async () => {
    const scores = { 2: { scores: [2] }, 3: { scores: [3] }, 4: { scores: [4] } };
    server.on(READ_OUT, () => ({ texts: [{ tokens: [{ text: "x" }], readout: { joy: scores } }] }));
    await store.read();
    expect([store.layer.value, store.shownScores.value]).toEqual([3, [3]]);
  });
});

describe("nothing to read", () => {
  it("is not sent, and is called so", async () => {
    store.text.value = " ";
    await store.read();
    expect([server.seen, store.missing.value]).toEqual([[], "Write a text first."]);
    store.kind.value = "conversation";
    expect(store.missing.value).toBeNull();
    store.text.value = "old";
  });
});

describe("a library with more vectors than one request reads", () => {
  const names = Array.from({ length: 11 }, (_, index) => `v${index}`);
  const concepts = names.map((name) => ({ vector: `${name}@1`, layer: 3, score: 1, z: 2, tokens: [] }));
  const asked = () => server.bodies.map((body) => (body as { vectors?: string[] }).vectors).filter(Boolean);

  beforeEach(() => {
    store.chosen.value = null;
    server.on(EXPLAIN, () => ({ texts: [{ concepts }], warnings: [] }));
    server.on(READ_OUT, (body) => {
      const { vectors: given } = body as { vectors: string[] };
      const readout = Object.fromEntries(given.map((name) => [name, { 3: { scores: [given.length] } }]));
      return { texts: [{ tokens: [{ text: "x" }], readout }] };
    });
  });

  it("has all of them listed, and those beyond are read when they are chosen", async () => {
    await store.read();
    expect(store.reading.value?.standouts).toHaveLength(11);
    expect([store.error.value, asked()]).toEqual([null, [names.slice(0, 8)]]);
    store.choose("v9");
    await vi.waitFor(() => expect(store.shownScores.value).toEqual([1]));
    store.choose("v1");
    expect(asked()).toEqual([names.slice(0, 8), ["v9"]]);
  });

  it("has a chosen one read at once, unless another text is being read, with which it is read", async () => {
    await store.read();
    server.on(READ_OUT, () => held().promise);
    for (const name of ["v9", "v10"]) store.choose(name);
    const late = held();
    server.on(EXPLAIN, () => late.promise);
    void store.read();
    store.choose("v8");
    late.give({ texts: [{ concepts }], warnings: [] });
    await vi.waitFor(() => expect(asked()).toHaveLength(4));
    expect(asked().slice(1)).toEqual([["v9"], ["v10"], ["v8", ...names.slice(0, 7)]]);
    store.stop();
  });

  it("has the one that is looked at read with the next text", async () => {
    store.chosen.value = "v10";
    await store.read();
    expect([asked(), store.chosen.value]).toEqual([[["v10", ...names.slice(0, 7)]], "v10"]);
  });
});

describe("what of the library was not read", () => {
  it("is reported with a reading, also once another layer is read", async () => {
    await store.read();
    expect(store.reading.value?.warnings).toEqual([WARNING]);
    await store.readAllLayers("joy");
    expect(store.reading.value?.warnings).toEqual([WARNING]);
  });
});

describe("a reading that is not wanted any more", () => {
  it("gives way to a newer one, and its late answer changes nothing", async () => {
    const late = held();
    server.on(EXPLAIN, () => late.promise);
    store.text.value = "old";
    const first = store.read();
    await vi.waitFor(() => expect(server.seen).toEqual([EXPLAIN]));
    server.on(EXPLAIN, () => explained);
    store.text.value = "newer";
    await store.read();
    late.give(explained);
    await first;
    expect([shownText(), store.busy.value, store.error.value]).toEqual(["newer", false, null]);
    expect(server.seen).toEqual([EXPLAIN, EXPLAIN, READ_OUT]);
  });

  it("can be stopped", async () => {
    server.on(EXPLAIN, () => held().promise);
    const run = store.read();
    expect(store.busy.value).toBe(true);
    store.stop();
    await run;
    expect([store.busy.value, store.error.value, store.reading.value]).toEqual([false, null, null]);
  });

  it("stays when the link of the same text is opened again, and ends with the link of another", async () => {
    store.text.value = "old";
    await store.read();
    store.restoreRead({ text: "old" });
    expect(shownText()).toBe("old");
    store.restoreRead({ text: "another text" });
    expect(store.reading.value).toBeNull();
  });
});

describe("an error", () => {
  it("goes with the text it belongs to when the link of another is opened", async () => {
    server.on(EXPLAIN, () => refusal(422, "invalid_request"));
    store.text.value = "old";
    await store.read();
    store.restoreRead({ text: "old" });
    expect(store.error.value).toMatchObject({ code: "invalid_request" });
    store.restoreRead({ text: "another text" });
    expect(store.error.value).toBeNull();
  });
});

describe("a key of the whole page", () => {
  const [run, reroll] = [vi.fn(), vi.fn()];
  const press = (key: string, ctrlKey = false) => {
    for (const repeat of [false, true, true])
      onKey({ key, ctrlKey, repeat, target: null, preventDefault: () => {} } as unknown as KeyboardEvent);
  };

  it.each([
    ["asks once while it is held", null, [1, 1]],
    ["does nothing behind a window", {}, [0, 0]],
  ])("%s", (_, window, calls) => {
    vi.stubGlobal("document", { querySelector: () => window });
    vi.stubGlobal("HTMLElement", class {});
    for (const one of [run, reroll]) one.mockClear();
    const leave = useActions({ run, reroll });
    press("Enter", true);
    press("r");
    leave();
    expect([run.mock.calls.length, reroll.mock.calls.length]).toEqual(calls);
  });
});
