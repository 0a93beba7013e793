import { describe, expect, it } from "vitest";
import type { Vector } from "../src/api/client";
import { decodeState, encodeState } from "../src/core/places";
import { aligned, between, normalised, procrustes, rotate } from "../src/maths/geometry";
import { bulkOf, fullScale, meanOf, medianOf, plain, signed } from "../src/maths/scales";
import { doseOf, strengthAt, wordFor, zonesOf } from "../src/maths/strength";
import { changedTokens, parsePairs, parseTable } from "../src/maths/text";
import { ticksOf } from "../src/ui/Chart";

const CLOUD = [
  [1, 2],
  [-1, 0.5],
  [3, -2],
  [0.2, -1],
];

function turned(points: number[][], angle: number, mirror = 1): number[][] {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return points.map(([x, y]) => [c * x! - s * y! * mirror, s * x! + c * y! * mirror]);
}

function distance(a: readonly (readonly number[])[], b: readonly (readonly number[])[]): number {
  return Math.max(...a.flatMap((p, i) => p.map((x, d) => Math.abs(x - b[i]![d]!))));
}

describe("procrustes", () => {
  it.each([0.3, 2.5, -1.2, Math.PI])("undoes a rotation by %f", (angle) => {
    const matrix = procrustes(turned(CLOUD, angle), CLOUD);
    expect(
      distance(
        turned(CLOUD, angle).map((p) => rotate(p, matrix)),
        CLOUD,
      ),
    ).toBeLessThan(1e-9);
  });

  it("undoes a reflection", () => {
    const mirrored = turned(CLOUD, 0.7, -1);
    const matrix = procrustes(mirrored, CLOUD);
    expect(
      distance(
        mirrored.map((p) => rotate(p, matrix)),
        CLOUD,
      ),
    ).toBeLessThan(1e-9);
  });

  it("returns an orthogonal matrix for noisy points in three dimensions", () => {
    const a = [[1, 0, 0.2], [0, 2, 0], [0.5, 0, 3], [-1, -1, -1]]; // biome-ignore format: a table
    const b = [[0.1, 1.2, 0], [2, 0.3, 0.1], [0, 0.4, -3], [-1, -1.2, 1]]; // biome-ignore format: a table
    const r = procrustes(a, b);
    for (let i = 0; i < 3; i++)
      for (let j = 0; j < 3; j++) {
        const dot = r[i]!.reduce((sum, v, k) => sum + v * r[j]![k]!, 0);
        expect(dot).toBeCloseTo(i === j ? 1 : 0, 9);
      }
  });

  it("stays finite when all points lie on a line or in one place", () => {
    const line = [[1, 1], [2, 2], [-3, -3]]; // biome-ignore format: a table
    expect(procrustes(line, line).flat().every(Number.isFinite)).toBe(true);
    expect(procrustes([[0, 0]], [[0, 0]])).toEqual([[1, 0], [0, 1]]); // biome-ignore format: a table
  });
});

describe("aligned layers", () => {
  it("aligns layers that are the same cloud turned, moved and grown", () => {
    const layers = [CLOUD, turned(CLOUD, 1).map((p) => p.map((x) => 40 * x + 7)), turned(CLOUD, 2, -1)];
    const result = aligned(layers);
    for (const layer of result) expect(distance(layer.points, result[0]!.points)).toBeLessThan(1e-9);
    expect(result[1]!.place(layers[1]![2]!)[0]).toBeCloseTo(result[0]!.points[2]![0]!, 9);
  });

  it("gives the points median distance one, whatever one outlier does", () => {
    const spread = (points: number[][]) => points.map((p) => Math.hypot(...p)).sort((a, b) => a - b);
    const { points } = normalised([...CLOUD, [2, 2]]);
    expect(spread(points)[2]).toBeCloseTo(1, 9);
    const outlying = normalised([...CLOUD, [1, 1.5], [0.5, 1], [1e6, 1e6]]).points;
    expect(spread(outlying)[3]).toBeCloseTo(1, 9);
    expect(spread(outlying)[0]).toBeGreaterThan(0.01);
  });

  it("interpolates between layers", () => {
    expect(between([[0, 0]], [[2, 4]], 0.25)).toEqual([[0.5, 1]]);
  });
});

describe("differences", () => {
  it("mark the tokens of words that were inserted or replaced, and no others", () => {
    const marks = (base: string, tokens: string[]) => changedTokens(base, tokens).map(Number);
    expect(marks("I am glad here", ["I", " am", " s", "ad", " here"])).toEqual([0, 0, 1, 1, 0]);
    expect(marks("It is a fine day", ["It is", " a", " bad rainy", " day"])).toEqual([0, 0, 1, 0]);
    expect([marks("same", ["same"]), marks("", ["new"])]).toEqual([[0], [1]]);
  });
});

describe("scales", () => {
  it("show the bulk of a curve when one value is many times larger", () => {
    const values = [...Array.from({ length: 40 }, (_, index) => (index % 5) - 2), 53];
    const [low, high] = bulkOf(values);
    expect(low).toBeCloseTo(-2.2, 6);
    expect(high).toBeCloseTo(6.2, 6);
    expect(bulkOf([])[0]).toBeLessThan(bulkOf([null, 3])[1]);
    expect(medianOf([1, null, 53, 2, undefined, 3])).toBe(2.5);
    expect(medianOf([])).toBeNull();
  });

  it("formats numbers with a real minus and no negative zero", () => {
    expect([signed(-1.234), signed(0.5), signed(-0.001), signed(null)]).toEqual(["−1.23", "+0.50", "0.00", "–"]);
    expect(plain(-0.5, 1)).toBe("−0.5");
  });

  it("ignores what is not finite", () => {
    expect(meanOf([1, null, 3, Number.NaN])).toBe(2);
    expect(meanOf([])).toBeNull();
    expect(fullScale([0.1, -5, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 0.1)).toBe(0.3);
  });
});

describe("strength", () => {
  const vector = {
    layers: [0, 1],
    scale: { "0": 2, "1": 4 },
    recommended: { layers: [1], strength: [1, 2] },
    quality: null,
  } as unknown as Vector;

  it("computes the dose from scale and norm", () => {
    expect(doseOf(vector, -2, [1], [10, 40])).toBeCloseTo(0.2, 12);
  });

  it("takes zones from the card, else from the strengths to try, else from the norms", () => {
    expect(zonesOf(vector, 1, [10, 40])).toEqual({ low: 1, high: 2, measured: false });
    const tried = { ...vector, recommended: { layers: [1], strengths_to_try: [0.6, 1.5] } } as unknown as Vector;
    expect(zonesOf(tried, -1, [10, 40])).toEqual({ low: 0.6, high: 1.5, measured: false });
    const bare = { ...vector, recommended: { layers: [1], strength: null } } as unknown as Vector;
    expect(zonesOf(bare, -1, [10, 40])).toEqual({ low: 0.5, high: 2, measured: false });
    const oneSided = {
      ...vector,
      recommended: { layers: [1], strength: [1, 2], basis: "measured" },
    } as unknown as Vector;
    expect([1, -1].map((sign) => zonesOf(oneSided, sign, [10, 40]).measured)).toEqual([true, false]);
  });

  it("says what a strength does", () => {
    const zones = { low: 1, high: 2, measured: true };
    expect([0, -0.8, 1.4, -2, 2.1].map((s) => wordFor(s, zones))).toEqual(
      ["off", "a little", "clearly", "a lot", "may become incoherent"], // biome-ignore format: one line
    );
    expect(wordFor(1.2, zones, false)).toBe("not shown to steer");
  });

  it("is at a share of the measured end of its side", () => {
    const [negative, positive] = [1.67, 3.67].map((high) => ({ low: 1, high, measured: true })) as [never, never];
    expect([-1, -0.4, 0, 0.7, 1].map((share) => strengthAt(share, negative, positive))).toEqual([-1.67, -0.67, 0, 2.57, 3.67]); // biome-ignore format: one line
  });
});

describe("the marks of an axis", () => {
  it("are round numbers, without fractions where the axis has none", () => {
    expect(ticksOf([0, 1], 4)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1]);
    expect(ticksOf([-0.3, 0.3], 6)).toEqual([-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]);
    expect(ticksOf([-1.6, 30.6], 5, true)).toEqual([0, 5, 10, 15, 20, 25, 30]);
    expect(ticksOf([-1, 2], 9, true)).toEqual([-1, 0, 1, 2]);
    expect(ticksOf([1, 1], 4)).toEqual([]);
  });
});

describe("tables", () => {
  it("reads quoted fields, tabs and headers", () => {
    expect(parseTable('a,"b, ""c""\nd"\n')).toEqual([["a", 'b, "c"\nd']]);
    expect(parsePairs("negative\tpositive\nbad\tgood\n")).toEqual([{ positive: "good", negative: "bad" }]);
    expect(parsePairs("good,bad\nfine,awful")).toHaveLength(2);
  });

  it("reads JSON lines and names the line that is wrong", () => {
    expect(parsePairs('{"positive": "a", "negative": "b"}\n')).toEqual([{ positive: "a", negative: "b" }]);
    expect(() => parsePairs('{"positive": "a", "negative": "b"}\n{"positive": 3}')).toThrow("Line 2");
  });
});

describe("addresses", () => {
  it("round-trips any text and refuses anything else", () => {
    const value = { prompt: "Grüße 😀 \u202e <b>", list: [1, -2.5, null] };
    expect(decodeState(encodeState(value))).toEqual(value);
    expect(decodeState("%%%")).toBeNull();
    expect(encodeState(value)).toMatch(/^[A-Za-z0-9_-]+$/);
  });
});
