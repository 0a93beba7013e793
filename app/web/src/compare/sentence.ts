import { poleAt } from "../core/concepts";
import { plain, signed } from "../maths/scales";
import type { Pane } from "./run";
import { shiftOf } from "./run";

/** Ratios of perplexities, steered to plain, up to which a text is called so. */
const FLUENCY: readonly (readonly [number, string])[] = [
  [1.2, "as fluent as before"],
  [1.6, "a little less fluent"],
  [2.5, "less fluent"],
  [Number.POSITIVE_INFINITY, "much less fluent"],
];

/** A shift below which two texts read alike, where no interval says more. */
const NOTICEABLE = 0.15;

/** Says in one sentence what an answer is against the plain one; null where that was not measured. */
export function sentenceOf(pane: Pane, base: Pane | undefined, vector: string | null): string | null {
  const shift = shiftOf(pane, base, vector);
  if (vector === null || shift?.mean == null) return null;
  const amount = `(${shiftWords(shift)})`;
  const [low, high] = shift.interval ?? [];
  const known = low != null && high != null;
  const sure = known ? low > 0 || high < 0 : null;
  const fluency = fluencyOf(pane, base);
  const rest = fluency === null ? "" : `, ${fluency}`;
  if (sure === false) return `No sure effect on ${vector} ${amount}${rest}`;
  if (sure === null && Math.abs(shift.mean) < NOTICEABLE) return `Hardly different in ${vector} ${amount}${rest}`;
  return `${sure ? "Clearly more" : "More"} “${poleAt(vector, shift.mean)}” ${amount}${rest}`;
}

function fluencyOf(pane: Pane, base: Pane | undefined): string | null {
  const [own, before] = [pane.metrics?.perplexity, base?.metrics?.perplexity];
  return own && before ? fluencyWord(own / before) : null;
}

/** Says how fluent a text is by the ratio of its perplexity to that of the plain one. */
export function fluencyWord(ratio: number): string {
  return FLUENCY.find(([most]) => ratio <= most)![1];
}

/** A shift with half the width of its interval. */
export function shiftWords({ mean, interval }: { mean: number | null; interval?: readonly (number | null)[] | null }) {
  const [low, high] = interval ?? [];
  return `${signed(mean)}${low == null || high == null ? "" : ` ± ${plain((high - low) / 2, 2)}`}`;
}
