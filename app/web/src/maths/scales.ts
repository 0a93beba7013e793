import { extent, mean, median, quantile } from "d3-array";

type Values = readonly (number | null | undefined)[];

export const clamp = (value: number, low: number, high: number): number => Math.min(Math.max(value, low), high);

/** Formats a number with a sign and at most two decimals; a real minus sign, so that columns align. */
export function signed(value: number | null | undefined, digits = 2): string {
  const text = plain(value, digits);
  if (text === "–" || Number(text.replace("−", "-")) === 0) return text.replace("−", "");
  return text.startsWith("−") ? text : `+${text}`;
}

/** Formats a number without a sign for positive values. */
export const plain = (value: number | null | undefined, digits = 2): string =>
  value == null || !Number.isFinite(value) ? "–" : value.toFixed(digits).replace("-", "−");

/** Returns how far a score is from the middle, from 0 to 1, on a scale where `full` is full colour. */
export const magnitude = (score: number, full: number): number => clamp(Math.abs(score) / full, 0, 1);
/** Returns the mean of the values that are there, or null where none is. */
export const meanOf = (values: Values) => mean(values) ?? null;
/** Returns the middle of the values that are there, or null: unlike the mean, one huge value does not move it. */
export const medianOf = (values: Values) => median(values) ?? null;

/** Returns a value such that about nine in ten absolute values lie below it; never below `least`. */
export function fullScale(values: readonly number[], least: number): number {
  const sorted = values.map(Math.abs).sort((a, b) => a - b);
  return Math.max(sorted[Math.floor(0.9 * (sorted.length - 1))] ?? 0, least);
}

/** Returns a range that shows the bulk of the values: one that is many times larger than the others is cut off. */
export function bulkOf(values: Values): [number, number] {
  const at = (share: number) => quantile(values, share) ?? 0;
  const width = at(0.95) - at(0.05) || 1;
  return [Math.max(at(0), at(0.05) - width) - 0.05 * width, Math.min(at(1), at(0.95) + width) + 0.05 * width];
}

export function linear(domain: readonly [number, number], range: readonly [number, number]): (x: number) => number {
  const width = domain[1] - domain[0] || 1;
  return (x) => range[0] + ((x - domain[0]) / width) * (range[1] - range[0]);
}

/** Returns the domain of values with a margin on both sides. */
export function domainOf(values: readonly number[], margin = 0.05): [number, number] {
  const [low, high] = extent(values);
  if (low === undefined || high === undefined) return [0, 1];
  const extra = (high - low || Math.abs(high) || 1) * margin;
  return [low - extra, high + extra];
}
