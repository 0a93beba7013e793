import { batch, computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import { isAbort } from "../api/errors";
import type { LatentSpace, Readout } from "../api/types";
import { remembered, textOr } from "../frame/remembered";
import { limit } from "../frame/server";
import { type AlignedLayer, aligned, alongVector } from "../maths/procrustes";
import { meanOf } from "../maths/scales";
import { type ConceptDetail, conceptTexts, parseTexts, type TextSet } from "./sets";

const COLOURS = ["label", "score", "none"] as const;
export type ColourBy = (typeof COLOURS)[number];
export type Position = "mean" | "last";

/** "own" for the texts a person typed, else the name of a starter concept. */
export const setName = signal("sentiment");
export const ownText = remembered("texts", "", textOr);
export const method = signal("pca");
export const dims = signal<2 | 3>(2);

/** The pseudo method whose horizontal axis is the score of the chosen vector. */
export const ALONG_VECTOR = "vector";
export const position = signal<Position>("mean");
export const vector = signal<string | null>(null);
export const colourBy = signal<ColourBy>("label");

/** What the picture shows; null before the first drawing. */
export const drawn = signal<{ set: TextSet; answer: LatentSpace; vector: string | null } | null>(null);
export const busy = signal(false);
export const error = signal<unknown>(null);

/** Where the playhead is: 0 is the first picture (the embeddings), fractions lie between two layers. */
export const playhead = signal(0);
export const playing = signal(false);
export const picked = signal<number | null>(null);

/** The selected texts. */
export const lassoed = signal<readonly number[]>([]);

/** The texts that the list shows: those of the latest lasso, also once one of them is not selected any more; null: all. */
export const listed = signal<readonly number[] | null>(null);

/** Selects the texts inside a lasso, and lists them alone. */
export function lasso(indices: readonly number[]): void {
  batch(() => {
    lassoed.value = indices;
    listed.value = indices.length > 0 ? indices : null;
  });
}

/** Selects one text more, or not any more. The list stays as it is. */
export function select(index: number, on: boolean): void {
  const others = lassoed.value.filter((one) => one !== index);
  lassoed.value = on ? [...others, index].sort((a, b) => a - b) : others;
}

interface Scores {
  vector: string;
  byLayer: ReadonlyMap<number, readonly (number | null)[]>;
}

/** Scores of every drawn text; null until they were asked for. */
export const scores = signal<Scores | null>(null);

/** The vector whose scores are shown, or will be: another one may have been chosen since. */
export const scoredVector = computed(() => scores.value?.vector ?? vector.value);

/** The maps in drawing order: input embeddings first, then the layers. */
export const maps = computed(() => {
  const answer = drawn.value?.answer;
  if (!answer) return [];
  return [...(answer.embedding ? [answer.embedding] : []), ...answer.layers];
});

export const layers = computed<AlignedLayer[]>(() => {
  const plain = aligned(maps.value.map((map) => map.points.map((point) => point.map((x) => x ?? 0))));
  const found = scores.value?.byLayer ?? null;
  if (method.value !== ALONG_VECTOR || found === null) return plain;
  return alongVector(plain, maps.value.map((map) => (map.layer == null ? undefined : found.get(map.layer)))); // biome-ignore format: one line
});

/** The map nearest to the playhead. */
export const current = computed(() => maps.value[Math.round(playhead.value)]);

export function layerName(index: number): string {
  const layer = maps.value[index]?.layer;
  return layer === null || layer === undefined ? "input embeddings" : `layer ${layer}`;
}

/** How many readings of scores are under way. */
export const scoresBusy = signal(0);

let abort: AbortController | null = null;

async function chosenTexts(signal: AbortSignal): Promise<TextSet> {
  if (setName.value === "own") return parseTexts(ownText.value);
  const path = { name: setName.value };
  return conceptTexts(await dataOf<ConceptDetail>(api.GET("/v1/concepts/{name}", { params: { path }, signal })));
}

/** Asks for the map of the chosen texts and shows it. */
export async function draw(): Promise<void> {
  abort?.abort();
  const stopper = new AbortController();
  abort = stopper;
  busy.value = true;
  error.value = null;
  try {
    const set = await chosenTexts(stopper.signal);
    const most = limit("max_texts", 2000);
    if (set.texts.length < 3) throw new Error("Write at least three texts, one a line.");
    if (set.texts.length > most) throw new Error(`These are ${set.texts.length} texts; this server takes ${most}.`);
    const name = vector.value;
    const body = {
      texts: set.texts,
      ...(set.labels && new Set(set.labels).size > 1 ? { labels: set.labels } : {}),
      ...(name ? { vectors: [name] } : {}),
      method: method.value === ALONG_VECTOR ? "pca" : method.value,
      dims: method.value === ALONG_VECTOR ? 2 : dims.value,
      position: position.value,
      embeddings: true,
    };
    const answer = await dataOf<LatentSpace>(api.POST("/v1/latent-space", { body, signal: stopper.signal }));
    batch(() => {
      if (!sameTexts(drawn.value?.set.texts, set.texts)) {
        picked.value = null;
        lasso([]);
      }
      drawn.value = { set, answer, vector: name };
      scores.value = null;
      playhead.value = Math.min(playhead.value, answer.layers.length);
    });
    if (colourBy.value === "score" || method.value === ALONG_VECTOR) await loadScores(stopper.signal);
  } catch (failure) {
    if (!isAbort(failure) && abort === stopper) error.value = failure;
  } finally {
    if (abort === stopper) busy.value = false;
  }
}

function sameTexts(before: readonly string[] | undefined, texts: readonly string[]): boolean {
  return before?.length === texts.length && texts.every((text, index) => text === before[index]);
}

/** Chooses a vector. Without one no map is along it, and none is coloured by its scores. */
export function chooseVector(name: string | null): void {
  vector.value = name;
  if (name !== null) return;
  if (method.value === ALONG_VECTOR) method.value = "pca";
  if (colourBy.value === "score") colourBy.value = "label";
}

/** Gives up the drawing that runs. */
export function stopDrawing(): void {
  abort?.abort();
}

/** What a link to this view holds: what is drawn and how, and where the playhead is. */
export function spaceState(): object {
  return { ...settings(), playhead: playhead.value };
}

/** What is drawn and how. */
export function settings(): object {
  return {
    set: setName.value,
    ...(setName.value === "own" ? { texts: ownText.value } : {}),
    method: method.value,
    dims: dims.value,
    position: position.value,
    vector: vector.value,
    colour: colourBy.value,
  };
}

/** Restores and draws what `spaceState` gave. */
export function restoreSpace(state: unknown): void {
  const given = state as Record<string, unknown>;
  const word = (name: string, otherwise: string) => {
    const value = given[name];
    return typeof value === "string" ? value : otherwise;
  };
  batch(() => {
    setName.value = word("set", setName.value);
    ownText.value = word("texts", ownText.value);
    method.value = word("method", method.value);
    dims.value = given.dims === 3 ? 3 : 2;
    position.value = given.position === "last" ? "last" : "mean";
    colourBy.value = COLOURS.find((one) => one === given.colour) ?? "label";
    chooseVector(word("vector", "") || null);
  });
  void draw().then(() => {
    if (typeof given.playhead === "number")
      playhead.value = Math.max(Math.min(given.playhead, maps.value.length - 1), 0);
  });
}

/** Reads every text against the chosen vector at every layer. An answer for what is not shown or chosen any more is ignored. */
export async function loadScores(signal?: AbortSignal): Promise<void> {
  scoresBusy.value++;
  try {
    await readScores(signal ?? null);
  } finally {
    scoresBusy.value--;
  }
}

async function readScores(signal: AbortSignal | null): Promise<void> {
  const shown = drawn.value;
  const name = vector.value;
  if (!shown || name === null) return;
  const isLate = () => drawn.value !== shown || vector.value !== name;
  const body = { texts: shown.set.texts, vectors: [name], layers: "all" as const };
  let answer: Readout;
  try {
    answer = await dataOf<Readout>(api.POST("/v1/readout", { body, signal }));
  } catch (failure) {
    if (isLate()) return;
    throw failure;
  }
  if (isLate()) return;
  const found = new Map<number, (number | null)[]>();
  answer.texts.forEach((text, index) => {
    for (const [layer, one] of Object.entries(text.readout[name] ?? {})) {
      const list = found.get(Number(layer)) ?? new Array<number | null>(answer.texts.length).fill(null);
      list[index] = one.mean;
      found.set(Number(layer), list);
    }
  });
  scores.value = { vector: name, byLayer: found };
}

/** The scores at the playhead as distances from their middle, so that both colours are used. */
export const shownScores = computed<readonly (number | null)[]>(() => {
  const layer = current.value?.layer;
  const list = layer == null ? undefined : scores.value?.byLayer.get(layer);
  if (!list) return [];
  const middle = meanOf(list) ?? 0;
  return list.map((one) => (one === null ? null : one - middle));
});
