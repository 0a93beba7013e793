import type { Estimate, Transfer, Vector } from "../api/types";
import type { Verdict } from "../library/verdict";

export type Loss = Pick<Transfer, "explained" | "cosine" | "auroc" | "effect" | "warnings">;

const CHANCE = 0.5;

/** The loss that was measured when a vector was carried over from another model; null for every other vector. */
export function lossOf(vector: Vector): Loss | null {
  const loss = vector.provenance.loss as Partial<Loss> | undefined;
  return vector.method === "transferred" && loss?.auroc ? ({ warnings: [], ...loss } as Loss) : null;
}

/** Says in words what is left of the direction in the loaded model. */
export function lossVerdict({ auroc }: Pick<Loss, "auroc">): Verdict & { sentence: string } {
  const [carried, native, random] = [auroc.transferred, auroc.native, auroc.random].map(boundsOf);
  if (!carried)
    return {
      kind: "unmeasured",
      text: "loss not measured",
      sentence: "Too little was held out to measure what was lost.",
    };
  if (carried.low <= CHANCE)
    return {
      kind: "bad",
      text: "shows nothing",
      sentence:
        "Shows nothing: in the loaded model the carried direction does not read the concept better than chance.",
    };
  if (random && carried.low <= random.high)
    return {
      kind: "bad",
      text: "shows nothing",
      sentence:
        "Shows nothing: random directions of the loaded model read these pairs too, and the carried one is not shown to read them better.",
    };
  if (native && carried.high < native.low)
    return {
      kind: "good",
      text: "reads, with a loss",
      sentence: "It reads the concept in the loaded model, but less well than a direction that was found there.",
    };
  return {
    kind: "good",
    text: "reads, no loss shown",
    sentence: "It reads the concept in the loaded model; no loss against a direction that was found there is shown.",
  };
}

/** Says in words whether the carried direction was shown to steer; null where that was not measured. */
export function effectSentence(effect: Loss["effect"]): string | null {
  if (!effect) return null;
  const [carried, random] = [effect.shift.transferred, effect.shift.random].map(boundsOf);
  if (!carried) return "With the carried direction the numbers left their range.";
  if (carried.low <= 0) return "It is not shown to move what this model writes.";
  if (random && carried.low <= random.high)
    return "It moves what this model writes, but random directions are not shown to move it less.";
  return "It moves what this model writes, and further than random directions.";
}

interface Bounds {
  mean: number;
  low: number;
  high: number;
}

/** The mean and its interval, as numbers; an estimate without an interval is as wide as its mean. */
export function boundsOf(estimate: Estimate | null | undefined): Bounds | null {
  if (estimate?.mean == null) return null;
  const [low, high] = estimate.interval ?? [];
  return { mean: estimate.mean, low: low ?? estimate.mean, high: high ?? estimate.mean };
}
