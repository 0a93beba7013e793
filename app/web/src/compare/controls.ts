import type { Vector } from "../api/client";
import { plainName, polesOf } from "../core/server";
import { given, isLike, likeParts } from "../core/state";
import { doseOf, isShown, type StrengthZones, shownSides, wordFor, zonesOf } from "../maths/strength";
import type * as words from "../words.json";

type LayerChoice = "recommended" | "all" | number[] | { from: number; to: number };

export type Condition = { vector: string; side: "above" | "below"; bound: number; at: keyof typeof words.conditionAt };

/** What a control has before a person sets it. */
export const BLANK = {
  on: true,
  strength: 1,
  /** What the strength counts: the vector's natural scale, or its calibration, where 1 changes neutral text by 1 nat. */
  unit: "scale" as keyof typeof words.units,
  operation: "add" as keyof typeof words.operations,
  layers: "recommended" as LayerChoice,
  hook: "residual" as keyof typeof words.hooks,
  /** The attention head that is ablated instead of the vector. */
  head: null as number | null,
  shareDose: false,
  tokens: "all" as keyof typeof words.tokens,
  role: null as keyof typeof words.roles | null,
  phase: null as keyof typeof words.phases | null,
  tokenIds: null as number[] | null,
  low: null as number | null,
  high: null as number | null,
  degrees: 30,
  to: null as string | null,
  endsAfter: null as number | null,
  when: null as Condition | null,
};

/** One vector as a person sets it: a signed strength, and behind "more" everything else. */
export type Control = typeof BLANK & { id: number; vector: string };
/** What the server gets; without a vector it ablates an attention head. */
export type Intervention = Record<string, unknown> & { vector?: string };

let nextId = 1;
/** Whether a vector is the effect of an instruction, which its map adds. */
export const isDistilled = ({ method }: Vector) => method === "distil";
export const DISTILLED = { operation: "apply" } as const;

/** Returns a control for a vector: at a strength that is clear and does not break the text, or of the map of a distilled instruction. */
export function controlFor(vector: Vector, norms: readonly number[], sign = 1): Control {
  const distilled = isDistilled(vector) ? DISTILLED : {};
  return { ...BLANK, ...distilled, id: nextId++, vector: vector.name, strength: defaultStrength(vector, norms, sign) };
}

/** An example of every part of a control: also of those that are null in most. */
const WHOLE = { vector: "", role: "", phase: "", to: "", head: 0, low: 0, high: 0, endsAfter: 0, tokenIds: [0], when: { vector: "", side: "", bound: 0, at: "" } }; // biome-ignore format: one line
const LAYERS = [[0], { from: 0, to: 0 }];

/** Completes a control from an address, which names only what differs from the usual; a part of another kind is as usual. */
export function restoredControl({ layers, ...part }: Partial<Control> & { vector: string }): Control {
  const known = layers === "all" || LAYERS.some((example) => isLike(layers, example)) ? layers : undefined;
  const parts = likeParts(part, { ...BLANK, ...WHOLE }) as Partial<Control>;
  return { ...BLANK, ...parts, vector: part.vector, layers: known ?? "recommended", id: nextId++ };
}

/** The middle of the range that works, to one decimal where that is in the range. */
export function defaultStrength(vector: Vector, norms: readonly number[], sign: number): number {
  const zones = zonesOf(vector, sign, norms);
  const middle = (zones.low + zones.high) / 2;
  const short = Number(middle.toFixed(1));
  const inside = middle >= 1 && short >= zones.low && short <= zones.high;
  return sign * (inside ? short : Number(middle.toFixed(2)));
}

/** Returns the intervention the server gets. `overall` multiplies strengths and angles. */
export function intervention(control: Control, overall: number): Intervention {
  const { vector, operation, hook, unit, strength, degrees, low, high, to, layers, when, endsAfter } = control;
  const head = headOf(control);
  const scope = given({
    tokens: control.tokens === "all" ? null : control.tokens,
    roles: control.role && [control.role],
    phase: control.phase && [control.phase],
    token_ids: control.tokenIds?.length ? control.tokenIds : null,
  });
  const multiplied = operation === "add" ? strength * overall : operation === "apply" && overall !== 1 ? overall : null;
  return given({
    vector: head === null ? vector : null,
    operation,
    head,
    strength: multiplied && rounded(multiplied),
    unit: operation === "add" && unit !== "scale" ? unit : null,
    hook: hook === "residual" ? null : hook,
    degrees: operation === "rotate" ? rounded(degrees * overall) : null,
    low: operation === "clamp" ? low : null,
    high: operation === "clamp" ? high : null,
    to: operation === "replace" ? to || null : null,
    layers: layers === "recommended" ? null : layers,
    share_dose: sharesDose(control) || null,
    scope: Object.keys(scope).length === 0 ? null : scope,
    when: when && { vector: when.vector, [when.side]: when.bound, at: when.at },
    schedule: endsAfter === null ? null : { kind: "linear", to: 0, tokens: endsAfter },
  });
}

/** The attention head that a control ablates; null where it acts along its vector. */
export const headOf = ({ operation, hook, head }: Control): number | null => (operation === "ablate" && hook === "attention" ? head : null); // biome-ignore format: one line

/** Whether the layers of a control share the dose of the recommended layers. */
const sharesDose = ({ operation, shareDose, layers }: Control): boolean =>
  shareDose && operation === "add" && layers !== "recommended";

export function shortly({ vector, operation, strength, head }: Intervention): string {
  if (vector === undefined) return `without head ${head}`;
  if (operation !== "add" && operation !== undefined) return `${operation} ${vector}`;
  return typeof strength === "number" ? `${vector} ${String(strength).replace("-", "−")}` : vector;
}

export const interventions = (controls: readonly Control[], overall: number): Intervention[] =>
  controls.filter((control) => control.on).map((control) => intervention(control, overall));

const rounded = (value: number): number => Number(value.toFixed(4));

export function layersOf(control: Control, vector: Vector): number[] {
  const { layers } = control;
  if (layers === "recommended") return vector.recommended?.layers ?? [];
  if (layers === "all") return vector.layers;
  if (Array.isArray(layers)) return layers;
  return vector.layers.filter((layer) => layer >= layers.from && layer < layers.to);
}

/** The stops of a dial that counts nats: at its end neutral text changes by 1. */
const NAT_ZONES: StrengthZones = { low: 0.4, high: 1, measured: true };

/** The strengths below and above 0 that change neutral text by 1 nat at the one layer of a control; null in another unit. */
function nat(control: Control, vector: Vector): readonly [number, number] | null {
  const [layer] = layersOf(control, vector);
  const found = control.unit === "kl" ? vector.kl?.[String(layer)] : undefined;
  return found ? [Math.abs(found[0] ?? 1), Math.abs(found[1] ?? 1)] : null;
}

/** Everything a dial shows about a vector. The word and the dose are of what acts, which `overall` multiplies. */
export function dialFacts(vector: Vector, control: Control, norms: readonly number[], bound: number, overall = 1) {
  const nats = nat(control, vector);
  const zones = (sign: number) => (nats ? NAT_ZONES : zonesOf(vector, sign, norms, bound));
  const [negative, positive] = [zones(-1), zones(1)];
  const strength = control.strength * overall;
  const scale = nats ? nats[strength < 0 ? 0 : 1] : 1;
  // of a shared dose, it is that of the recommended layers
  const dosed = layersOf(sharesDose(control) ? { ...control, layers: "recommended" } : control, vector);
  return {
    negative,
    positive,
    shown: shownSides(vector),
    word: wordFor(strength, strength < 0 ? negative : positive, isShown(vector, strength)),
    dose: doseOf(vector, strength * scale, dosed, norms),
  };
}

/** Reads layers as a person writes them: "12", "12, 14" or "10-15"; null where that is not a list of layers. */
export function parseLayers(text: string): LayerChoice | null {
  const range = /^\s*(\d+)\s*[-–]\s*(\d+)\s*$/.exec(text);
  if (range) {
    const [from, to] = [Number(range[1]), Number(range[2]) + 1];
    return from < to ? { from, to } : null;
  }
  const parts = text.split(/[\s,]+/).filter(Boolean);
  if (parts.length === 0 || !parts.every((part) => /^\d+$/.test(part))) return null;
  return [...new Set(parts.map(Number))].sort((a, b) => a - b);
}

export function layerText(layers: LayerChoice): string {
  if (layers === "recommended" || layers === "all") return "";
  return Array.isArray(layers) ? layers.join(", ") : `${layers.from}-${layers.to - 1}`;
}

/** Returns an instruction in words that asks for what the vectors push toward: the prompt-only arm. */
export function instructionFor(controls: readonly Control[], vectors: ReadonlyMap<string, Vector>): string {
  const parts = controls
    .filter((control) => control.on && control.operation === "add" && control.strength !== 0)
    .map(({ vector: name, strength }) => {
      const vector = vectors.get(plainName(name));
      const [poles, more] = [polesOf(name, vector), strength > 0];
      if (poles.given) return more ? poles.positive : poles.negative;
      const description = vector?.description || name;
      return more ? description : `the opposite of "${description}"`;
    });
  return parts.length === 0 ? "" : `Answer in this manner: ${parts.join("; ")}.`;
}
