import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { CompareBody } from "../src/compare/draft";
import { allScores, answerReading, readAnswers, readBack, wasRead } from "../src/compare/readback";
import { emptyPane, type Pane, shadeValue } from "../src/compare/run";
import { scoresOfParts } from "../src/read/turns";
import { FakeServer, held, refusal } from "./fakeServer";

const READ_OUT = "POST /v1/readout";
const asked = {} as CompareBody;

/** A pane whose tokens carry what the steered stream had: 9 each. */
function paneOf(name: string, ...samples: string[][]): Pane {
  const choices = samples.map((texts) => ({
    text: texts.join(""),
    tokens: texts.map((text, id) => ({ id, text, readout: { joy: 9 } })),
    finish: "stop",
  }));
  return { ...emptyPane(name, samples.length), choices };
}

let server: FakeServer;

beforeEach(() => {
  readBack.forget();
  server = new FakeServer().on(READ_OUT, (body) => ({
    texts: (body as { texts: string[] }).texts.map((text) => ({
      tokens: [...text].map((one) => ({ text: one })),
      readout: { joy: { 3: { mean: text.length, scores: [...text].map((_, index) => index) } } },
    })),
  }));
});

afterEach(() => vi.unstubAllGlobals());

describe("what the answers say", () => {
  const panes = [paneOf("normal", ["so", " it"], []), paneOf("steered", ["so", "!"], ["a", "b"])];

  it("is read again from the finished texts, and is never what the steered stream carried", async () => {
    await readAnswers(asked, panes, "joy");
    expect(server.bodies).toEqual([{ texts: ["so it", "so!", "ab"], vectors: ["joy"] }]);
    const steered = answerReading(asked, "joy", "steered", 0);
    expect(steered).toEqual({ mean: 3, scores: [1, 2] });
    expect([0, 1].map((index) => shadeValue(panes[1]!, 0, index, "reading", steered?.scores ?? []))).toEqual([1, 2]);
    expect(answerReading(asked, "joy", "normal", 1)).toBeUndefined(); // an answer without tokens
    expect(allScores.value).toEqual([1, 4, 1, 2, 1]);
  });

  it("is asked once for a run and a vector, and is not shown of another run or vector", async () => {
    await readAnswers(asked, panes, "joy");
    await readAnswers(asked, panes, "joy");
    expect(server.seen).toHaveLength(1);
    expect(answerReading({} as CompareBody, "joy", "steered", 0)).toBeUndefined();
    expect(answerReading(asked, "calm", "steered", 0)).toBeUndefined();
  });

  it("is known of answers that all are empty without asking", async () => {
    expect(wasRead(asked, "joy")).toBe(false);
    await readAnswers(asked, [paneOf("normal", [])], "joy");
    expect([wasRead(asked, "joy"), wasRead(asked, "calm"), server.seen]).toEqual([true, false, []]);
  });

  it("is not replaced by a late answer about an earlier run", async () => {
    const late = held();
    server.on(READ_OUT, () => late.promise);
    const earlier = readAnswers(asked, panes, "joy");
    const latest = {} as CompareBody;
    await readAnswers(latest, [paneOf("normal", [])], "joy");
    late.give({ texts: [] });
    await earlier;
    expect([wasRead(latest, "joy"), readBack.data.value?.answers.size]).toEqual([true, 0]);
  });

  it("is that of a run which is shown again, also while another is read or could not be", async () => {
    const other = {} as CompareBody;
    await readAnswers(asked, panes, "joy");
    const late = held();
    server.on(READ_OUT, () => late.promise);
    const reading = readAnswers(other, panes, "joy");
    await readAnswers(asked, panes, "joy");
    late.give({ texts: [] });
    await reading;
    expect([wasRead(asked, "joy"), readBack.busy.value]).toEqual([true, false]);
    expect(answerReading(asked, "joy", "steered", 0)?.mean).toBe(3);
    server.on(READ_OUT, () => refusal(422, "invalid_request"));
    await readAnswers(other, panes, "joy");
    expect(readBack.error.value).not.toBeNull();
    await readAnswers(asked, panes, "joy");
    expect(readBack.error.value).toBeNull();
  });

  it("is not known where it cannot be read, and the reason is shown", async () => {
    server.on(READ_OUT, () => refusal(422, "invalid_request"));
    await readAnswers(asked, panes, "joy");
    expect([readBack.data.value, readBack.error.value]).toMatchObject([null, { code: "invalid_request" }]);
  });
});

describe("the reading of an answer", () => {
  it("is at the middle of several recommended layers, as the mean that the server gives of an answer", async () => {
    const joy = { 3: { mean: 3, scores: [3] }, 4: { mean: 4, scores: [4] }, 12: { mean: 12, scores: [12] } };
    server.on(READ_OUT, () => ({ texts: [{ tokens: [{ text: "y" }], readout: { joy } }] }));
    await readAnswers(asked, [paneOf("normal", ["y"])], "joy");
    expect(answerReading(asked, "joy", "normal", 0)?.mean).toBe(4);
  });
});

describe("scores of the tokens of an answer", () => {
  const of = (parts: string[], tokens: string[]) =>
    scoresOfParts(
      parts,
      tokens.map((text) => ({ text })),
      tokens.map((_, index) => index),
    );

  it("are found in other tokens of the same text, with a first token that is not in it", () => {
    expect(of(["Hel", "lo", " you"], ["<s>", "Hello", " y", "ou"])).toEqual([1, 1, 3]);
    expect(of(["Hel", "lo"], ["He", "llo"])).toEqual([1, 1]);
    expect(of(["He", "llo"], ["Hello"])).toEqual([null, null]);
    expect(of(["So", " ", "it"], ["<s>", "x So", " ", "it"])).toEqual([1, 2, 3]);
  });

  it("are found where characters are split into tokens, and are missing where the texts differ", () => {
    expect(of(["So", " ", "", "👍", "!"], ["So", " �", "�", "!"])).toEqual([null, 1, null, 2, 3]);
    expect(of(["So"], ["Oh"])).toEqual([null]);
  });
});
