import { computed, effect, signal, untracked } from "@preact/signals";
import type { Schemas, Vector } from "../api/client";
import { api, apiKey, dataOf, isRefusal, keyState, keyWanted, lostConnections, messageOf } from "../api/client";
import { allPages, Queries, Query } from "./query";
import { keep, kept, remembered } from "./state";

const POLL_SECONDS = 2;
const FASTEST = "steering-server.fastest";
const RELOAD_SECONDS = 3;
/** What the server can do; null until it has answered. */
export const capabilities = signal<Schemas["CapabilitiesAnswer"] | null>(null);
/** Why the server cannot work now; null while it can. */
export const serverTrouble = signal<string | null>(null);

/** What the engine does at the moment; null where the key may not see it. */
export const load = signal<ReturnType<typeof loadOf> | null>(null);
/** Median residual norms by layer, against which doses are planned. */
export const typicalNorms = computed<readonly number[]>(() => capabilities.value?.model.typical_norms ?? []);
export const layerCount = computed(() => capabilities.value?.layers ?? 0);

/** Whether the key of this tab has a scope, as far as that is known. */
export const mayDo = (scope: string): boolean =>
  (capabilities.value?.key?.scopes ?? [scope]).some((one) => one === scope || one === "admin");

export const doseBound = computed(() => limit("dose_bound", 0.2));

export function limit(name: string, otherwise: number): number {
  const value = capabilities.value?.limits[name];
  return typeof value === "number" ? value : otherwise;
}

/** Loads what every place needs, and again when the key changes; waits while the model loads. */
export async function loadServer(): Promise<void> {
  effect(() => {
    void apiKey.value;
    untracked(() => void connect());
  });
  effect(() => {
    if (keyWanted.value) serverTrouble.value = null; // it has answered, and is not asked again before it gets a key
  });
  effect(() => {
    if (lostConnections.value > 0) untracked(() => void poll()); // at once, not at the next turn
  });
  setInterval(() => void poll(), POLL_SECONDS * 1000);
}

let newest = 0;
let retry: ReturnType<typeof setTimeout> | undefined;

/** Loads it all with the key of this tab. What an earlier attempt finds, with another key perhaps, is ignored. */
async function connect(): Promise<void> {
  const turn = ++newest;
  clearTimeout(retry);
  try {
    const found = await dataOf<Schemas["CapabilitiesAnswer"]>(api.GET("/v1/capabilities"));
    if (turn !== newest) return;
    capabilities.value = found;
    serverTrouble.value = null;
    await Promise.all([library.load(), conceptList.load(), poll()]);
    if (library.error.peek() !== null) throw library.error.peek();
  } catch (error) {
    if (turn !== newest) return;
    if (isRefusal(error)) {
      library.forget();
      refused = apiKey.peek(); // it has answered, and would refuse this key again
      serverTrouble.value = null;
      return;
    }
    serverTrouble.value = messageOf(error);
    retry = setTimeout(() => void connect(), RELOAD_SECONDS * 1000);
  }
}

let fastest = { place: "", rate: 0 };
let lastCount: { tokens: number; at: number } | null = null;
let refused: string | null | undefined;
/** The key with which the gauges are being read: a slow server is not asked again before it has answered. */
let asking: string | null | undefined;

/** Reads the engine's gauges. A key without the right to see them asks once only, and from then on whether the server is ready. */
async function poll(): Promise<void> {
  const key = apiKey.value;
  const known = capabilities.value !== null || refused === key;
  if (document.hidden || !known || keyWanted.value || asking === key) return;
  const lost = serverTrouble.value !== null;
  asking = key;
  try {
    const headers: Record<string, string> = key ? { Authorization: `Bearer ${key}` } : {};
    const blind = refused === key;
    const response = await (blind ? fetch("/health/ready") : fetch("/metrics", { headers }));
    if (key !== apiKey.value) return;
    if ([401, 403, 404].includes(response.status)) refused = key;
    if (response.status < 500)
      found(lost); // a refusal shows, too, that it can be reached
    else if (blind) serverTrouble.value = "The server is not ready.";
    if (!blind) load.value = response.ok ? loadOf(gauges(await response.text())) : null;
  } catch (error) {
    load.value = null;
    serverTrouble.value = messageOf(error);
  } finally {
    if (asking === key) asking = undefined;
  }
}

let finding = false;

/** Takes note of an answer. A server that was lost may load its model still, and may have another one and other vectors now. */
function found(lost: boolean): void {
  if (!lost) serverTrouble.value = null;
  if (!lost || finding) return;
  finding = true;
  void connect().finally(() => (finding = false));
}

/** Returns what the gauges say, with the most tokens in a second that this browser has seen of the model. */
function loadOf(values: ReadonlyMap<string, number>) {
  const tokens = values.get("steering_generated_tokens_total");
  const at = performance.now();
  let rate: number | null = null;
  if (tokens !== undefined) {
    if (lastCount && at > lastCount.at) rate = (Math.max(0, tokens - lastCount.tokens) / (at - lastCount.at)) * 1000;
    lastCount = { tokens, at };
  }
  const place = `${FASTEST}.${capabilities.peek()?.model.fingerprint}`;
  if (fastest.place !== place) fastest = { place, rate: Number(kept("localStorage", place)) || 0 };
  if (rate && rate > fastest.rate) {
    fastest.rate = rate;
    keep("localStorage", place, String(rate));
  }
  return {
    running: values.get("steering_engine_running") ?? 0,
    waiting: values.get("steering_engine_waiting") ?? 0,
    tokensPerSecond: rate,
    fastest: fastest.rate || null,
  };
}

/** Reads the values without labels from Prometheus text. */
export const gauges = (text: string): Map<string, number> =>
  new Map([...text.matchAll(/^([a-z_]+) (\S+)$/gm)].map(([, name, value]) => [name!, Number(value)]));

/** The newest version of every vector, and what the list leaves out. */
export const library = new Query((signal) =>
  allPages<Vector>((cursor) => {
    const query = { limit: limit("max_page", 200), ...(cursor === undefined ? {} : { cursor }) };
    return dataOf<Schemas["VectorPageAnswer"]>(api.GET("/v1/vectors", { params: { query }, signal }));
  }),
);

/** The newest version of every vector; null until they have been loaded. */
export const vectors = computed<readonly Vector[] | null>(() => library.data.value?.data ?? null);
/** Whether the key of this tab may not see the vectors, as far as that is known. */
const notShown = computed(() => keyState.value === "limited" || keyState.value === "wanted");
/** Whether the vectors are still to come. */
export const vectorsAwaited = computed(() => vectors.value === null && !notShown.value);

export const vectorByName = computed(() => new Map((vectors.value ?? []).map((vector) => [vector.name, vector])));
/** Returns the name in an id such as `sentiment@3`. */
export const plainName = (id: string): string => id.split("@")[0] ?? id;
/** Returns the vector a name stands for, with or without a version. */
export const vectorNamed = (name: string): Vector | undefined => vectorByName.value.get(plainName(name));
/** The vector whose card Make shows; null while one is being described there. */
export const card = remembered<string | null>("card", null, (before) =>
  typeof before === "string" ? before : undefined,
);

/** The starter concepts and those in words, with the words of their two poles. */
export const conceptList = new Query(
  async (signal) => (await dataOf<{ data: Schemas["ConceptAnswer"][] }>(api.GET("/v1/concepts", { signal }))).data,
);

/** Those with pairs that come with the server. */
export const concepts = computed<readonly Schemas["ConceptAnswer"][]>(() =>
  (conceptList.data.value ?? []).filter((one) => one.pairs > 0),
);

/** Whether the words of the poles are still to come: those of the vectors and of the concepts. */
export const polesAwaited = computed(
  () =>
    !notShown.value && [library, conceptList].some(({ data, error }) => data.value === null && error.value === null),
);

/** A concept with its pairs. A side of a pair is a text, or the messages of a conversation. */
export type ConceptDetail = Pick<Schemas["ConceptDetail"], "positive" | "negative" | "data">;

export const conceptDetails = new Queries((signal, name: string) =>
  dataOf<ConceptDetail>(api.GET("/v1/concepts/{name}", { params: { path: { name } }, signal })),
);

/** What a vector means above and below zero, in words; `given`: somebody wrote them, else they are made of the name. */
export type Poles = { positive: string; negative: string; given: boolean };

const OPPOSITE = /^(.*?) \(opposite: (.*)\)$/s;

/** Returns a description that says what both sides of a vector do, for `polesOf` to read. */
export function describePoles(positive: string, negative: string): string {
  const [more, less] = [positive.trim(), negative.trim()];
  return more !== "" && less !== "" ? `${more} (opposite: ${less})` : more;
}

/** Returns the words of a vector's two poles: those of its starter concept, else those of its description, else made of its name. */
export function polesOf(name: string, vector: Vector | undefined = vectorNamed(name)): Poles {
  const own = plainName(name);
  const description = vector?.description ?? "";
  const concept = concepts.value.find((one) => one.name === own);
  if (concept && (description === "" || description === concept.description))
    return { positive: concept.positive, negative: concept.negative, given: true };
  const [, positive, negative] = OPPOSITE.exec(description) ?? [];
  if (positive && negative) return { positive, negative, given: true };
  return { positive: `more ${own}`, negative: `less ${own}`, given: false };
}

/** Returns the words of the pole that a score or a strength points to. */
export const poleAt = (name: string, value: number): string => polesOf(name)[value < 0 ? "negative" : "positive"];
