/** Returns a value within bounds. */
export function clamp(value: number, low: number, high: number): number {
  return Math.min(Math.max(value, low), high);
}

/** Formats a number with a sign and at most two decimals; a real minus sign, so that columns align. */
export function signed(value: number | null | undefined, digits = 2): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const rounded = value.toFixed(digits);
  if (Number(rounded) === 0) return (0).toFixed(digits);
  return value < 0 ? `−${rounded.slice(1)}` : `+${rounded}`;
}

/** Formats a number without a sign for positive values. */
export function plain(value: number | null | undefined, digits = 2): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return value.toFixed(digits).replace("-", "−");
}

/** Returns how far a score is from the middle, from 0 to 1, on a scale where `full` is full colour. */
export function magnitude(score: number, full: number): number {
  return clamp(Math.abs(score) / full, 0, 1);
}

/** Returns the mean of the finite values, or null where there is none. */
export function meanOf(values: readonly (number | null | undefined)[]): number | null {
  const finite = values.filter((v): v is number => typeof v === "number" && Number.isFinite(v));
  return finite.length === 0 ? null : finite.reduce((sum, v) => sum + v, 0) / finite.length;
}

/** Returns a value such that about nine in ten absolute values lie below it; never below `least`. */
export function fullScale(values: readonly number[], least: number): number {
  const sorted = values.map(Math.abs).sort((a, b) => a - b);
  return Math.max(sorted[Math.floor(0.9 * (sorted.length - 1))] ?? 0, least);
}

/** Returns the middle of the finite values, or null where there is none: unlike the mean, one huge value does not move it. */
export function medianOf(values: readonly (number | null | undefined)[]): number | null {
  const sorted = values.filter((v): v is number => typeof v === "number" && Number.isFinite(v)).sort((a, b) => a - b);
  if (sorted.length === 0) return null;
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}

/** Returns a range that shows the bulk of the values: one that is many times larger than the others is cut off. */
export function bulkOf(values: readonly (number | null)[]): [number, number] {
  const sorted = values.filter((v): v is number => v !== null && Number.isFinite(v)).sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))] ?? 0;
  const width = at(0.95) - at(0.05) || 1;
  return [Math.max(at(0), at(0.05) - width) - 0.05 * width, Math.min(at(1), at(0.95) + width) + 0.05 * width];
}

/** Maps a domain to a range linearly. */
export function linear(domain: readonly [number, number], range: readonly [number, number]): (x: number) => number {
  const width = domain[1] - domain[0] || 1;
  return (x) => range[0] + ((x - domain[0]) / width) * (range[1] - range[0]);
}

/** Returns the domain of values with a margin on both sides. */
export function domainOf(values: readonly number[], margin = 0.05): [number, number] {
  const finite = values.filter(Number.isFinite);
  if (finite.length === 0) return [0, 1];
  const low = Math.min(...finite);
  const high = Math.max(...finite);
  const extra = (high - low || Math.abs(high) || 1) * margin;
  return [low - extra, high + extra];
}
