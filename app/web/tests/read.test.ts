import { describe, expect, it } from "vitest";
import type { Explanation } from "../src/api/client";
import { carriersOf, standoutsOf } from "../src/read/store";

const all = new Set(Array.from({ length: 10 }, (_, index) => index));
const tokens = ["The", " hotel", " dis", "grace", "d", " it", ".", " Don", "'", "t"].map((text) => ({ text }));

describe("words that carry a concept", () => {
  it("are whole words around tokens, each once, without punctuation", () => {
    expect(carriersOf([3, 2, 6, 1], tokens)).toEqual(["disgraced", "hotel"]);
    expect(carriersOf([8, 9], tokens)).toEqual(["Don't"]);
  });

  it("come with the concepts of the answer, without versions", () => {
    const carrying = { index: 2, id: 5, text: " dis", z: -4 };
    const concepts = [{ vector: "sentiment@2", layer: 18, score: -0.7, z: -3.1, tokens: [carrying] }];
    const answer = { texts: [{ tokens: 10, concepts }] } as unknown as Explanation;
    expect(standoutsOf(answer, tokens, all)).toEqual([
      { vector: "sentiment", layer: 18, mean: -0.7, z: -3.1, carriers: ["disgraced"] },
    ]);
    expect(standoutsOf({ texts: [] } as unknown as Explanation, tokens, all)).toEqual([]);
  });
});
