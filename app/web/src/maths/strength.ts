import type { Vector } from "../api/types";

export type StrengthWord = "off" | "barely" | "clear" | "strong" | "may break text" | "breaks text";

/** The strengths of a vector by what they do, on one side of zero. `measured`: from a dose-response. */
export interface StrengthZones {
  low: number;
  high: number;
  measured: boolean;
}

/** Relative doses that usually show, and that usually break text, for vectors without any range. */
const DOSE_SHOWS = 0.05;
const DOSE_BREAKS = 0.2;

type Range = readonly (number | null)[] | null | undefined;

interface RangeFields {
  strength?: Range;
  negative?: Range;
  strengths_to_try?: Range;
  basis?: string | null;
}

/** Returns the zones on the side of `sign`, from the card, else from the vector's scale against the model's norms. */
export function zonesOf(vector: Vector, sign: number, norms: readonly number[], bound = DOSE_BREAKS): StrengthZones {
  const recommended = vector.recommended as RangeFields | null;
  const measured = recommended?.basis ? recommended.basis === "measured" : Boolean(vector.quality?.dose_response);
  const side = pair(sign < 0 ? (recommended?.negative ?? recommended?.strength) : recommended?.strength);
  if (side) return { ...side, measured };
  const tried = pair(recommended?.strengths_to_try);
  if (tried) return { ...tried, measured: false };
  const layers = vector.recommended?.layers ?? vector.layers;
  const perUnit = doseOf(vector, 1, layers, norms);
  if (!(perUnit > 0)) return { low: 0.5, high: 2, measured: false };
  return { low: DOSE_SHOWS / perUnit, high: bound / perUnit, measured: false };
}

function pair(range: Range): { low: number; high: number } | null {
  if (!range || typeof range[0] !== "number" || typeof range[1] !== "number") return null;
  const [low, high] = [Math.abs(range[0]), Math.abs(range[1])].sort((a, b) => a - b) as [number, number];
  return { low, high };
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

/** Says in words what a strength does. */
export function wordFor(strength: number, zones: StrengthZones): StrengthWord {
  const size = Math.abs(strength);
  if (size === 0) return "off";
  if (size < zones.low) return "barely";
  if (size <= zones.low + (zones.high - zones.low) / 2) return "clear";
  if (size <= zones.high) return "strong";
  return zones.measured ? "breaks text" : "may break text";
}

/** Returns the end of a slider that shows the zones of both sides and some of what lies beyond. */
export function sliderEnd(negative: StrengthZones, positive: StrengthZones): number {
  const end = 1.5 * Math.max(negative.high, positive.high);
  const step = end > 10 ? 1 : end > 2 ? 0.5 : 0.1;
  return Math.ceil(end / step) * step;
}
