import type { Vector } from "../api/client";

type StrengthWord = "off" | "a little" | "clearly" | "a lot" | "may become incoherent" | "not shown to steer";
/** The strengths of a vector by what they do, on one side of zero. `measured`: from a dose-response. */
export type StrengthZones = { low: number; high: number; measured: boolean };
/** Relative doses that usually show, and that usually break text, for vectors without any range. */
const DOSE_SHOWS = 0.05;
const DOSE_BREAKS = 0.2;

type Range = readonly (number | null)[] | null | undefined;

/** Returns the zones on the side of `sign`, from the card, else from the vector's scale against the model's norms. */
export function zonesOf(vector: Vector, sign: number, norms: readonly number[], bound = DOSE_BREAKS): StrengthZones {
  const { recommended } = vector;
  const measured = recommended?.basis ? recommended.basis === "measured" : Boolean(vector.quality?.dose_response);
  const [own, other] = sign < 0 ? ["negative" as const, "strength" as const] : ["strength" as const, "negative" as const]; // biome-ignore format: one line
  const side = pair(recommended?.[own] ?? recommended?.[other]);
  if (side) return { ...side, measured: measured && Boolean(recommended?.[own]) }; // a side may have the range of the other one
  const tried = pair(recommended?.strengths_to_try);
  if (tried) return { ...tried, measured: false };
  const perUnit = doseOf(vector, 1, recommended?.layers ?? vector.layers, norms);
  if (!(perUnit > 0)) return { low: 0.5, high: 2, measured: false };
  return { low: DOSE_SHOWS / perUnit, high: bound / perUnit, measured: false };
}

function pair(range: Range): { low: number; high: number } | null {
  if (!range || typeof range[0] !== "number" || typeof range[1] !== "number") return null;
  const [low, high] = [Math.abs(range[0]), Math.abs(range[1])].sort((a, b) => a - b) as [number, number];
  return { low, high };
}

/** Whether the card shows that a vector steers toward a side: of `sign`, or of either one without it. null: that was not measured. */
export function isShown(vector: Vector, sign?: number): boolean | null {
  if (vector.quality?.warnings?.some((warning) => /^(not shown to|does not) steer(?! at)/.test(warning))) return false;
  const { strength, negative, basis } = vector.recommended ?? {};
  if (!vector.quality?.dose_response) return null;
  if (basis !== "measured") return strength || negative ? true : null;
  return sign === undefined ? Boolean(strength || negative) : Boolean(sign < 0 ? negative : strength);
}

/** Whether the card shows it for each of the two sides. */
export const shownSides = (vector: Vector) => ({ negative: isShown(vector, -1), positive: isShown(vector, 1) });
/** What the card says about the first recommended layer. */
export const qualityOf = ({ recommended, quality }: Vector) => quality?.layers[String(recommended?.layers?.[0])];

/** Whether the card's interval at the recommended layers, or of too few topics for one the AUROC, reaches down to chance. */
export function atChance({ recommended, quality }: Vector): boolean {
  const own = (recommended?.layers ?? []).map((layer) => quality?.layers[String(layer)]);
  const known = own.map((one) => one?.auroc_interval?.[0] ?? one?.auroc);
  return known.length > 0 && known.every((low) => typeof low === "number" && low <= 0.5);
}

/** Returns the planned relative dose of an add in unit `scale`: |strength| x scale / typical norm, largest over layers. */
export function doseOf(vector: Vector, strength: number, layers: readonly number[], norms: readonly number[]): number {
  const doses = layers.map((layer) => {
    const scale = vector.scale[String(layer)];
    const norm = norms[layer];
    return scale && norm ? (Math.abs(strength) * scale) / norm : 0;
  });
  return Math.max(0, ...doses);
}

/** The named stops of a dial, as shares of the measured end of a side. */
export const STOPS: readonly (readonly [number, StrengthWord])[] = [
  [0.4, "a little"],
  [0.7, "clearly"],
  [1, "a lot"],
];

/** Where a dial ends, and the one step beyond it. */
export const DIAL_END = 1.3;
export const FURTHER = 1.6;

/** Says in words what a strength does: the nearest stop below the measured end. `shown`: whether the card shows that it steers this way. */
export function wordFor(strength: number, { high }: StrengthZones, shown: boolean | null = null): StrengthWord {
  const share = Math.abs(strength) / high;
  if (share === 0) return "off";
  if (share > 1 + 1e-6) return "may become incoherent";
  if (shown === false) return "not shown to steer";
  return STOPS.reduce((best, stop) => (Math.abs(stop[0] - share) < Math.abs(best[0] - share) ? stop : best))[1];
}

/** The strength at a share of a dial, to two decimals; below zero it is of the negative side. */
export const strengthAt = (share: number, negative: StrengthZones, positive: StrengthZones): number =>
  Number((share * (share < 0 ? negative : positive).high).toFixed(2));
