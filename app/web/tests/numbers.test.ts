import { describe, expect, it } from "vitest";
import { numberIn, problemOf } from "../src/ui/fields";

describe("a typed number", () => {
  const tokens = { min: 1, max: 2048, step: 1 };

  it("is taken within its bounds", () => {
    expect(["0", "0.", "0.0", "0.05"].map((text) => numberIn(text, { min: 0, max: 5, step: 0.1 }))).toEqual([
      0, 0, 0, 0.05,
    ]);
    expect(numberIn("-0.5", { step: 0.1 })).toBe(-0.5);
    expect(numberIn("", tokens)).toBeUndefined();
  });

  it("outside of them, or with a fraction where whole numbers are asked for, says what is allowed", () => {
    expect(numberIn("5000", tokens)).toBeUndefined();
    expect(problemOf("5000", tokens)).toBe("It must be 1 to 2048.");
    expect(problemOf("7.5", tokens)).toBe("It must be a whole number.");
    expect(problemOf("0", { min: 1, step: 1 })).toBe("It must be at least 1.");
    expect(problemOf("2", { max: 1, step: 0.1 })).toBe("It must be at most 1.");
    expect(problemOf("", tokens)).toBeNull();
  });
});
