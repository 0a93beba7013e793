import { describe, expect, it } from "vitest";
import type { Vector } from "../src/api/client";
import { chooseFeature, featureName, searchBody, setFields as setSearch } from "../src/make/Dictionary";
import { rows } from "../src/make/store";
import {
  fields,
  OWN_PAIRS,
  parseVectorFile,
  setFields,
  takeFile,
  transferBody,
  transferProblem,
} from "../src/make/Transfer";
import { effectSentence, lossOf, lossVerdict } from "../src/make/TransferLoss";
import { name } from "../src/make/work";

const bytesOf = (text: string) => new TextEncoder().encode(text).slice().buffer;

function safetensors(header: object, numbers: readonly number[]): ArrayBuffer {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new ArrayBuffer(8 + text.length + 4 * numbers.length);
  const view = new DataView(bytes);
  view.setBigUint64(0, BigInt(text.length), true);
  new Uint8Array(bytes).set(text, 8);
  for (const [index, number] of numbers.entries()) view.setFloat32(8 + text.length + 4 * index, number, true);
  return bytes;
}

const tensor = (from: number, to: number, dtype = "F32") => ({ dtype, shape: [2], data_offsets: [from, to] });

describe("a vector file", () => {
  it("is read from JSON, its layers in order", () => {
    const directions = { "12": [0, 1], "9": [1, 0], "10": [0.6, 0.8] };
    const text = JSON.stringify({ name: "joy", model: "gemma", recommended: { layers: [9, 10, 12] }, directions });
    const found = parseVectorFile(bytesOf(text));
    expect([found.name, found.model, found.layers, found.begin]).toEqual(["joy", "gemma", [9, 10, 12], 10]);
    expect(found.directions.get(10)).toEqual([0.6, 0.8]);
  });

  it("is read from safetensors", () => {
    const steering_vector = JSON.stringify({ model: "gemma", recommended: null, labels: { name: "joy" } });
    const header = { __metadata__: { steering_vector }, "layer.3": tensor(8, 16), "layer.2": tensor(0, 8) };
    const found = parseVectorFile(safetensors(header, [1, 0, 0.5, -0.5]));
    expect([found.name, found.model, found.layers, found.begin]).toEqual(["joy", "gemma", [2, 3], 2]);
    expect(found.directions.get(3)).toEqual([0.5, -0.5]);
  });

  it("that is something else says what it lacks", () => {
    for (const [bytes, words] of [
      [bytesOf("GGUF"), "neither"],
      [bytesOf("{}"), '"directions"'],
      [bytesOf("null"), '"directions"'],
      [bytesOf('{"directions": {"1": "a"}}'), "Layer 1"],
      [bytesOf('{"directions": {}}'), "no direction"],
      [safetensors({ "layer.0": tensor(0, 4, "F16") }, [1]), "F16"],
      [safetensors({ "layer.0": tensor(0, 400) }, [1]), "ends inside"],
    ] as const)
      expect(() => parseVectorFile(bytes)).toThrow(words);
  });
});

describe("a transfer", () => {
  it("asks for the second model's own direction, or carries that of a file", () => {
    name.value = "joy";
    expect(transferProblem.value).toBeNull();
    expect(transferBody()).toEqual({ name: "joy", concept: "sentiment", holdout: 0.3, seed: 0 });
    setFields({ origin: "file", anchors: " one \n\n two" });
    expect(transferProblem.value).toContain("Open the file");
    takeFile({ name: "joy", model: "m", layers: [4], begin: 4, directions: new Map([[4, [1, 2]]]) });
    expect(transferBody()).toMatchObject({ direction: [1, 2], from_layer: 4, anchors: ["one", "two"] });
    expect(transferProblem.value).toContain("at least 20 anchor texts");
    setFields({ concept: OWN_PAIRS, anchors: Array.from({ length: 20 }, (_, index) => `text ${index}`).join("\n") });
    expect(transferProblem.value).toContain("two pairs");
    const pair = { positive: "a", negative: "b" };
    rows.value = [pair, pair, { positive: "", negative: "" }];
    expect(transferProblem.value).toBeNull();
    expect(transferBody()).toMatchObject({ pairs: [pair, pair] });
    expect(fields.value.fromLayer).toBe(4);
    setFields({ effect: true });
    expect(transferBody().effect).toEqual({});
    setFields({ native: "sentiment" });
    expect(transferBody().effect).toEqual({ native: "sentiment" });
  });
});

describe("the loss of a transfer", () => {
  const estimate = (mean: number, low: number, high: number) => ({ mean, interval: [low, high] as [number, number] });
  const native = estimate(0.99, 0.91, 1);
  const random = estimate(0.59, 0.49, 0.67);

  it("is that of a vector that was carried over, and of no other", () => {
    const loss = { explained: 0.8, cosine: 0.6, auroc: {} };
    expect(lossOf({ method: "transferred", provenance: { loss } } as unknown as Vector)?.warnings).toEqual([]);
    expect(lossOf({ method: "transferred", provenance: {} } as unknown as Vector)).toBeNull();
    expect(lossOf({ method: "pca", provenance: { loss } } as unknown as Vector)).toBeNull();
  });

  it("says plainly where a transfer shows nothing", () => {
    const textOf = (transferred: ReturnType<typeof estimate> | null) =>
      lossVerdict({ auroc: { native, random, transferred } }).text;
    expect(textOf(estimate(0.96, 0.88, 0.98))).toBe("reads, no loss shown");
    expect(textOf(estimate(0.8, 0.72, 0.88))).toBe("reads, with a loss");
    expect(textOf(estimate(0.7, 0.6, 0.8))).toBe("shows nothing");
    expect(textOf(estimate(0.6, 0.45, 0.8))).toBe("shows nothing");
    expect(textOf(null)).toBe("loss not measured");
  });

  it("says whether the carried direction steers further than random ones, where that was measured", () => {
    const figures = { relative_dose: 0.15, prompts: 12, max_tokens: 32, native: null };
    const sentence = (transferred: ReturnType<typeof estimate> | null) =>
      effectSentence({ ...figures, shift: { native, transferred, random: estimate(0.04, -0.18, 0.2) } });
    expect(effectSentence(null)).toBeNull();
    const against = (chance: number | null) =>
      effectSentence({ ...figures, shift: { transferred: estimate(0.4, 0.2, 0.6) }, chance });
    expect(against(0.3)).toBe("It moves what this model writes, but random directions are not shown to move it less.");
    expect(against(0.1)).toBe("It moves what this model writes, and further than random directions.");
    expect(sentence(estimate(0.36, 0.24, 0.48))).toContain("further than random");
    expect(sentence(estimate(0.36, 0.1, 0.6))).toContain("not shown to move it less");
    expect(sentence(estimate(0.36, -0.1, 0.8))).toContain("not shown to move what");
    expect(sentence(null)).toContain("left their range");
  });
});

describe("a search in a dictionary", () => {
  it("asks for texts or for a vector, and for output scores only where a bound is given", () => {
    setSearch({ texts: "What a day!\n\nLovely. " });
    setSearch({ near: "joy" });
    expect(searchBody()).toEqual({ texts: ["What a day!", "Lovely."], top: 20 });
    setSearch({ against: "It rains.", leastScore: 0.01 });
    expect(searchBody()).toMatchObject({ against: ["It rains."], min_output_score: 0.01 });
    setSearch({ kind: "vector" });
    expect(searchBody()).toEqual({ vector: "joy", min_output_score: 0.01, top: 20 });
  });

  it("suggests a name until one is typed", () => {
    chooseFeature(5);
    chooseFeature(7);
    expect(featureName.value).toBe("feature-7");
    featureName.value = "delight";
    chooseFeature(8);
    expect(featureName.value).toBe("delight");
  });
});
