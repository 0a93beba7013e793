import { batch, computed, signal } from "@preact/signals";
import { csvFormatRows } from "d3-dsv";
import { api, dataOf, type LatentSpace, type Readout } from "../api/client";
import { Query } from "../core/query";
import { type ConceptDetail, conceptDetails, limit } from "../core/server";
import { given, remembered } from "../core/state";
import { type AlignedLayer, aligned, alongVector } from "../maths/geometry";
import { clamp, meanOf } from "../maths/scales";
import { parseTable } from "../maths/text";

const COLOURS = ["label", "score", "none"] as const;
export type ColourBy = (typeof COLOURS)[number];
/** "own" for the texts a person typed, else the name of a starter concept. */
export const setName = signal("sentiment");
export const ownText = remembered("texts", "");
export const method = signal("pca");
export const dims = signal<2 | 3>(2);
/** The pseudo method whose horizontal axis is the score of the chosen vector. */
export const ALONG_VECTOR = "vector";
export const position = signal<"mean" | "last">("mean");
export const vector = signal<string | null>(null);
export const colourBy = signal<ColourBy>("label");

export const settings = () => ({
  set: setName.value,
  ...(setName.value === "own" ? { texts: ownText.value } : {}),
  method: method.value,
  dims: dims.value,
  position: position.value,
  vector: vector.value,
  colour: colourBy.value,
});

const drawing = new Query(ask);
export const { busy, error } = drawing;
export const drawn = drawing.data;
/** Where the playhead is: 0 is the first picture (the embeddings), fractions lie between two layers. */
export const playhead = signal(0);
export const playing = signal(false);
export const picked = signal<number | null>(null);
/** What the tool shows: texts, the logit lens, or all vectors. */
export const tab = signal<"texts" | "lens" | "vectors">("texts");
export const dense = signal(false);
export const outlined = signal(false);
const NEIGHBOURS = 5;

/** The texts that lie nearest to the picked one in the picture of the layer that is shown. */
export const neighbours = computed<number[]>(() => {
  const points = layers.value[Math.round(playhead.value)]?.points ?? [];
  const own = picked.value === null ? undefined : points[picked.value];
  if (!own) return [];
  const away = points.map((point) => Math.hypot(...point.map((value, axis) => value - (own[axis] ?? 0))));
  const others = [...points.keys()].filter((index) => index !== picked.value);
  return others.sort((a, b) => away[a]! - away[b]!).slice(0, NEIGHBOURS);
});

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

/** Scores of every drawn text. */
const scoring = new Query((signal) => scoresOf(drawn.value?.set.texts ?? [], vector.value ?? "", signal));
export const { data: scores, busy: scoresBusy, error: scoresError } = scoring;
/** The vector whose scores are shown, or will be: another one may have been chosen since. */
export const scoredVector = computed(() => scores.value?.vector ?? vector.value);
/** The maps of an answer in drawing order: input embeddings first, then the layers. */
export const mapsOf = (answer: LatentSpace) => [...(answer.embedding ? [answer.embedding] : []), ...answer.layers];

/** Each map rotated and scaled onto the one before it. */
export const alignedMaps = (list: ReturnType<typeof mapsOf>): AlignedLayer[] =>
  aligned(list.map((map) => map.points.map((point) => point.map((x) => x ?? 0))));

export const maps = computed(() => (drawn.value ? mapsOf(drawn.value.answer) : []));

export const layers = computed<AlignedLayer[]>(() => {
  const plain = alignedMaps(maps.value);
  const found = scores.value?.byLayer ?? null;
  if (method.value !== ALONG_VECTOR || found === null) return plain;
  return alongVector(plain, maps.value.map((map) => (map.layer == null ? undefined : found.get(map.layer)))); // biome-ignore format: one line
});

/** The map nearest to the playhead. */
const current = computed(() => maps.value[Math.round(playhead.value)]);

export function layerName(index: number): string {
  const layer = maps.value[index]?.layer;
  return layer === null || layer === undefined ? "input embeddings" : `layer ${layer}`;
}

/** The picture that is shown as a table: the text, its label, and where its point lies. */
export function spaceTable(): string {
  const { texts = [], labels = null } = drawn.value?.set ?? {};
  const points = layers.value[Math.round(playhead.value)]?.points ?? [];
  return csvFormatRows([
    ["text", "label", ...["x", "y", "z"].slice(0, points[0]?.length)],
    ...texts.map((text, index) => [
      text,
      labels?.[index] ?? "",
      ...(points[index] ?? []).map((value) => value.toFixed(4)),
    ]),
  ]);
}

/** Two figures that are shown as the same number are equally good. */
const shown = (auroc: number) => Number(auroc.toFixed(2));

/** The maps at which the labels stand apart best, in order, as far as the figures shown tell them apart; none without labels. */
export const bestMaps = computed<number[]>(() => {
  const figures = maps.value.map((map) => map.separability?.auroc ?? null);
  const best = Math.max(...figures.map((one) => one ?? -1));
  return figures.flatMap((one, index) => (one !== null && shown(one) === shown(best) ? [index] : []));
});

/** Returns the map of the chosen texts, and the settings that were drawn. */
async function ask(stop: AbortSignal) {
  const of = settings();
  const query = conceptDetails.of(of.set);
  const detail = of.set === "own" ? null : (query.data.value ?? (await query.load()));
  stop.throwIfAborted();
  if (detail === null && of.set !== "own") throw query.error.value;
  const set = detail === null ? parseTexts(ownText.value) : conceptTexts(detail);
  const most = limit("max_texts", 2000);
  if (set.texts.length < 3) throw new Error("Write at least three texts, one a line.");
  if (set.texts.length > most) throw new Error(`These are ${set.texts.length} texts; this server takes ${most}.`);
  const along = of.method === ALONG_VECTOR;
  const body = {
    texts: set.texts,
    method: along ? "pca" : of.method,
    dims: along ? 2 : of.dims,
    position: of.position,
    embeddings: true,
    ...given({
      labels: new Set(set.labels).size > 1 ? set.labels : null,
      groups: set.groups,
      vectors: of.vector ? [of.vector] : null,
    }),
  };
  const answer = await dataOf<LatentSpace>(api.POST("/v1/latent-space", { body, signal: stop }));
  return { set, answer, vector: of.vector, of };
}

/** The texts for which the playhead was last placed. */
let placedFor: readonly string[] | undefined;

/** Draws the map of the chosen texts. Other texts are first shown at the layer at which their labels stand apart best. */
export async function draw(): Promise<void> {
  const before = drawn.value;
  if (before === null) placedFor = undefined;
  const found = await drawing.ask();
  if (found === null || found === before || drawn.value !== found) return;
  batch(() => {
    // not by what was drawn when this was asked for: two requests for the same texts may run at once
    if (JSON.stringify(placedFor) !== JSON.stringify(found.set.texts)) {
      placedFor = found.set.texts;
      picked.value = null;
      lasso([]);
      playhead.value = bestMaps.value[0] ?? 0;
    }
    scoring.forget();
    playhead.value = Math.min(playhead.value, found.answer.layers.length);
  });
  if (colourBy.value === "score" || method.value === ALONG_VECTOR) await scoring.ask();
}

/** Chooses a vector. Without one no map is along it, and none is coloured by its scores. */
export function chooseVector(name: string | null): void {
  if (name !== vector.value) scoring.stop(); // what is read is of the vector before
  vector.value = name;
  if (name !== null) return;
  if (method.value === ALONG_VECTOR) method.value = "pca";
  if (colourBy.value === "score") colourBy.value = "label";
}

/** Gives up the drawing that runs. What is chosen is again what the picture shows; the texts that were typed stay. */
export function stopDrawing(): void {
  if (busy.value && drawn.value) choose({ ...drawn.value.of, texts: null });
  drawing.stop();
  scoring.stop();
}

/** What a link to this view holds: what is drawn and how, and where the playhead is. */
export const spaceState = (): object => ({ ...settings(), playhead: playhead.value });

/** Restores and draws what `spaceState` gave. */
export function restoreSpace(state: unknown): void {
  const given = state as Record<string, unknown>;
  choose(given);
  void draw().then(() => {
    if (typeof given.playhead === "number")
      playhead.value = clamp(given.playhead, 0, Math.max(maps.value.length - 1, 0));
  });
}

function choose(given: Record<string, unknown>): void {
  const word = (name: string, otherwise: string) => (typeof given[name] === "string" ? given[name] : otherwise);
  batch(() => {
    setName.value = word("set", setName.value);
    ownText.value = word("texts", ownText.value);
    method.value = word("method", method.value);
    dims.value = given.dims === 3 ? 3 : 2;
    position.value = given.position === "last" ? "last" : "mean";
    colourBy.value = COLOURS.find((one) => one === given.colour) ?? "label";
    chooseVector(word("vector", "") || null);
  });
}

/** Reads every text against the chosen vector at every layer. */
export const loadScores = (): Promise<unknown> =>
  drawn.value === null || vector.value === null ? Promise.resolve() : scoring.ask();

/** Reads texts against a vector: for each layer that it has, the mean score of each text. */
export async function scoresOf(texts: readonly string[], name: string, signal: AbortSignal) {
  const body = { texts: [...texts], vectors: [name], layers: "all" as const };
  const answer = await dataOf<Readout>(api.POST("/v1/readout", { body, signal }));
  const layers = Object.keys(answer.texts[0]?.readout[name] ?? {});
  const means = (layer: string) => answer.texts.map(({ readout }) => readout[name]?.[layer]?.mean ?? null);
  return { vector: name, byLayer: new Map(layers.map((layer) => [Number(layer), means(layer)])) };
}

/** The scores at the playhead as distances from their middle, so that both colours are used. */
export const shownScores = computed<readonly (number | null)[]>(() => {
  const layer = current.value?.layer;
  const list = layer == null ? undefined : scores.value?.byLayer.get(layer);
  if (!list) return [];
  const middle = meanOf(list) ?? 0;
  return list.map((one) => (one === null ? null : one - middle));
});

interface TextSet {
  texts: string[];
  /** A label per text; null where they have none. */
  labels: string[] | null;
  /** A group per text, such as the topic of a pair: what is alike in both texts must not tell the labels apart. */
  groups?: string[];
}

/** Reads one text a line, or a table of text and label with or without a header. */
export function parseTexts(input: string): TextSet {
  const lines = input.split(/\r?\n/).filter((line) => line.trim() !== "");
  const tabbed = lines.some((line) => line.includes("\t"));
  const rows = tabbed || /^"?text"?,/i.test(input) ? parseTable(input) : lines.map((line) => [line]);
  const headed = rows[0]?.[0]?.trim().toLowerCase() === "text";
  const body = (headed ? rows.slice(1) : rows).filter((row) => row[0]?.trim());
  const labelled = body.length > 0 && body.every((row) => row[1]?.trim());
  return { texts: body.map((row) => row[0]!.trim()), labels: labelled ? body.map((row) => row[1]!.trim()) : null };
}

/** Returns the pairs of a concept as texts with the words of the two poles as labels. */
export function conceptTexts(detail: ConceptDetail): TextSet {
  const pairs = detail.data.filter((pair) => typeof pair.positive === "string" && typeof pair.negative === "string");
  return {
    texts: pairs.flatMap((pair) => [pair.positive as string, pair.negative as string]),
    labels: pairs.flatMap(() => [detail.positive, detail.negative]),
    groups: pairs.flatMap((pair, index) => Array(2).fill(pair.topic ?? `pair ${index}`)),
  };
}
