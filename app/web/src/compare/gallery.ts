import { computed, effect, signal } from "@preact/signals";
import { place } from "../core/places";
import { Query } from "../core/query";
import { capabilities, doseBound, polesAwaited, serverTrouble, typicalNorms, vectorByName, vectorsAwaited } from "../core/server"; // biome-ignore format: one line
import { isShown, STOPS, strengthAt, zonesOf } from "../maths/strength";
import { controlFor } from "./controls";
import { change, draft, isBegun } from "./draft";
import { comparison, run } from "./store";

/** The answers at one stop of a dial. The numbers are of all seeds, the words of the one that is shown. */
export interface SavedStop {
  strength: number;
  /** How far the answers lie from the plain ones, and half of the interval. */
  shift: readonly [number, number];
  perplexity_ratio: number;
  /** The pieces of the text, each with what it says about the concept. */
  words: readonly (readonly [string, number])[];
}

/** A prompt whose answers were measured along a dial (tools/gallery.py). */
export interface SavedItem {
  vector: string;
  poles: { positive: string; negative: string };
  prompt: string;
  seed: number;
  stops: readonly SavedStop[];
}

export type Gallery = { model: string; date: string; samples: number; items: readonly SavedItem[] };
const FILES = import.meta.glob<string>("./gallery/*.json", { query: "?url", import: "default", eager: true });
const fileOf = (model = "") => FILES[`./gallery/${model}.json`];
export const servedModel = computed(() => capabilities.value?.model?.name);
/** Where the saved answers of the served model are, or else those of the embedded one. */
export const address = computed(() => fileOf(servedModel.value) ?? fileOf("smollm2-135m-instruct")!);
const awaited = computed(() => !servedModel.value && serverTrouble.value === null && vectorsAwaited.value);
/** Ends once the server has said which model it serves, or does not say it. */
const answered = new Promise<void>((done) => effect(() => void (awaited.value || done())));
/** The saved answers, which come with the page: nothing is computed for them. */
export const gallery = new Query(async (signal): Promise<Gallery> => {
  await answered;
  return (await fetch(address.value, { signal })).json() as Promise<Gallery>;
});

/** What the large dial shows: an item, and the index of its stop. */
export const shownSaved = signal<{ item: number; stop: number } | null>(null);

/** The share of its side at which a stop lies: the stops of a side are those of every dial. */
export function shareOf({ stops }: SavedItem, index: number): number {
  const zero = stops.findIndex(({ strength }) => strength === 0);
  const [share = 0] = STOPS[Math.abs(index - zero) - 1] ?? [];
  return index < zero ? -share : share;
}

export const textOf = ({ words }: SavedStop): string => words.map(([text]) => text).join("").trim(); // biome-ignore format: one line

/** The ends of all dials, at most six: each item first with its most positive answer, then with its most negative one. */
export const cards = computed(() => {
  const ends = (gallery.data.value?.items ?? []).map(({ stops }, item) =>
    [1, -1].flatMap((sign) => {
      const outward = [...stops.keys()].sort((a, b) => sign * (stops[b]!.strength - stops[a]!.strength));
      const stop = outward.find((one) => sign * stops[one]!.strength > 0 && isWhole(stops[one]!));
      return stop === undefined ? [] : [{ item, stop }];
    }),
  );
  return [...ends.flatMap((one) => one.slice(0, 1)), ...ends.flatMap((one) => one.slice(1))].slice(0, 6);
});

/** Whether a text has no parts of characters, which a small model writes now and then. */
const isWhole = (stop: SavedStop): boolean => !textOf(stop).includes("\ufffd");

/** Whether nothing was set or run yet: the saved answers are shown then. */
export const onLanding = computed(() => {
  const { asked, running } = comparison;
  return !isBegun(draft.value) && asked.value === null && !running.value;
});

/** Whether the library can do live what an item shows, in the direction of a stop, with the words that the model is told. */
export function isLive({ vector, stops }: SavedItem, stop: number): boolean {
  const known = vectorByName.value.get(vector);
  return known !== undefined && !polesAwaited.value && isShown(known, stops[stop]?.strength ?? 0) !== false;
}

/** Asks live what a saved answer shows: the same prompt and seed, at the same stop of the dial of this server's vector. */
export function goLive(item: SavedItem, stop: number): void {
  const vector = vectorByName.value.get(item.vector);
  if (!vector || polesAwaited.value) return;
  const [negative, positive] = [-1, 1].map((sign) => zonesOf(vector, sign, typicalNorms.value, doseBound.value));
  const control = { ...controlFor(vector, typicalNorms.value), strength: strengthAt(shareOf(item, stop), negative!, positive!) }; // biome-ignore format: one line
  const { prompt, seed } = item;
  change({ prompt, seed, controls: [control], instruction: null, history: [], turns: [], raw: false, overall: 1, reader: null }); // biome-ignore format: one line
  run();
}

/** Returns what asks live for the first saved answer that the library can show. It does nothing when something was set or run since, or
 * where Play was left. */
export function firstDemonstration(): () => void {
  const before = draft.value;
  return () => {
    const items = gallery.data.value?.items ?? [];
    const first = cards.value.find(({ item, stop }) => isLive(items[item]!, stop));
    const untouched = draft.value === before && onLanding.value && place.value === "compare";
    if (first && untouched) goLive(items[first.item]!, first.stop);
  };
}
