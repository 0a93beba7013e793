import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import type { Message, Readout } from "../api/types";
import { vectors } from "../frame/vectors";
import { meanOf } from "../maths/scales";
import { NEUTRAL } from "./neutral";
import { type Turn, turnsOf } from "./turns";

export type Kind = "text" | "conversation";

const MAX_VECTORS = 64;

export const kind = signal<Kind>("text");
export const text = signal(
  "The hotel was a disgrace. Our suite smelled of smoke, the breakfast was cold, and nobody at the desk cared to help. " +
    "I was tired and miserable all week, and I would never stay in that dreadful place again.",
);
export const messages = signal<readonly Message[]>([
  { role: "user", content: "I think my new business plan is brilliant. Do you agree?" },
  { role: "assistant", content: "Absolutely! It is the most brilliant plan I have ever seen, and you cannot fail." },
]);
export const busy = signal(false);
export const error = signal<unknown>(null);

/** A concept of the library as it stands in the text: `z` in standard deviations from neutral texts. */
export interface Standout {
  vector: string;
  layer: number;
  mean: number | null;
  z: number | null;
}

interface Reading {
  standouts: Standout[];
  turns: Turn[];
  /** vector -> layer -> a score per token of the whole text. */
  scores: Map<string, Map<number, readonly (number | null)[]>>;
}

export const reading = signal<Reading | null>(null);
export const chosen = signal<string | null>(null);
export const layer = signal<number | null>(null);

/** The scores that colour the text. */
export const shownScores = computed<readonly (number | null)[]>(() => {
  const name = chosen.value;
  if (name === null || layer.value === null) return [];
  return reading.value?.scores.get(name)?.get(layer.value) ?? [];
});

/** The layers at which the chosen vector has been read. */
export const knownLayers = computed<number[]>(() =>
  chosen.value === null ? [] : [...(reading.value?.scores.get(chosen.value)?.keys() ?? [])].sort((a, b) => a - b),
);

function source(): { texts: string[] } | { messages: Message[] } {
  return kind.value === "text" ? { texts: [text.value] } : { messages: [...messages.value] };
}

/** Reads the text against every vector of the library and finds what stands out against neutral texts. */
export async function read(): Promise<void> {
  const names = (vectors.value ?? []).slice(0, MAX_VECTORS).map((vector) => vector.name);
  if (names.length === 0) return;
  busy.value = true;
  error.value = null;
  try {
    const [answer, baseline] = await Promise.all([
      dataOf<Readout>(api.POST("/v1/readout", { body: { ...source(), vectors: names } })),
      neutralScores(names),
    ]);
    const found = answer.texts[0];
    if (!found) return;
    const contents = kind.value === "text" ? [{ role: "text", content: text.value }] : messages.value;
    const turns = turnsOf(found.tokens, contents);
    const scores = new Map(names.map((name) => [name, byLayer(found.readout[name] ?? {})]));
    reading.value = { turns, scores, standouts: standoutsOf(names, scores, turns, baseline) };
    if (chosen.value === null || !names.includes(chosen.value))
      chosen.value = reading.value.standouts[0]?.vector ?? null;
    layer.value = knownLayers.value[0] ?? null;
  } catch (failure) {
    error.value = failure;
  } finally {
    busy.value = false;
  }
}

function byLayer(readout: Record<string, { scores: (number | null)[] }>): Map<number, readonly (number | null)[]> {
  return new Map(Object.entries(readout).map(([key, one]) => [Number(key), one.scores]));
}

interface Baseline {
  mean: number;
  deviation: number;
}

const baselines = new Map<string, Baseline>();

/** Returns mean and standard deviation of each vector over neutral texts, read once for each version. */
async function neutralScores(names: readonly string[]): Promise<ReadonlyMap<string, Baseline>> {
  const missing = names.filter((name) => !baselines.has(idOf(name)));
  if (missing.length > 0) {
    const body = { texts: [...NEUTRAL], vectors: missing };
    const answer = await dataOf<Readout>(api.POST("/v1/readout", { body }));
    for (const name of missing) {
      const values = answer.texts.map((one) => Object.values(one.readout[name] ?? {})[0]?.mean ?? null);
      const mean = meanOf(values) ?? 0;
      const spread = meanOf(values.map((value) => (value === null ? null : (value - mean) ** 2))) ?? 0;
      baselines.set(idOf(name), { mean, deviation: Math.sqrt(spread) });
    }
  }
  return new Map(names.map((name) => [name, baselines.get(idOf(name)) ?? { mean: 0, deviation: 0 }]));
}

function idOf(name: string): string {
  return (vectors.value ?? []).find((vector) => vector.name === name)?.id ?? name;
}

function standoutsOf(
  names: readonly string[],
  scores: ReadonlyMap<string, ReadonlyMap<number, readonly (number | null)[]>>,
  turns: readonly Turn[],
  baseline: ReadonlyMap<string, Baseline>,
): Standout[] {
  // The first token belongs to no word: its residual is many times larger than all others.
  const indices = turns.flatMap((turn) => turn.tokens.map((token) => token.index)).filter((index) => index > 0);
  const found = names.map((vector) => {
    const [first, list] = [...(scores.get(vector) ?? [])][0] ?? [0, []];
    const mean = meanOf(indices.map((index) => list[index]));
    const neutral = baseline.get(vector);
    const z = mean === null || !neutral?.deviation ? null : (mean - neutral.mean) / neutral.deviation;
    return { vector, layer: first, mean, z };
  });
  return found.sort((a, b) => Math.abs(b.z ?? 0) - Math.abs(a.z ?? 0));
}

/** Reads the text against one vector at every layer, for the layer picker. */
export async function readAllLayers(name: string): Promise<void> {
  const before = reading.value;
  if (!before) return;
  busy.value = true;
  try {
    const body = { ...source(), vectors: [name], layers: "all" as const };
    const answer = await dataOf<Readout>(api.POST("/v1/readout", { body }));
    const scores = new Map(before.scores).set(name, byLayer(answer.texts[0]?.readout[name] ?? {}));
    reading.value = { ...before, scores };
  } catch (failure) {
    error.value = failure;
  } finally {
    busy.value = false;
  }
}

export function choose(name: string): void {
  chosen.value = name;
  const layers = knownLayers.value;
  if (layer.value === null || !layers.includes(layer.value))
    layer.value = reading.value?.standouts.find((one) => one.vector === name)?.layer ?? layers[0] ?? null;
}

export function setMessage(index: number, part: Partial<Message>): void {
  messages.value = messages.value.map((message, at) => (at === index ? { ...message, ...part } : message));
}
