import { batch, computed, signal } from "@preact/signals";
import { api, dataOf, type Explanation, type Message, type Readout } from "../api/client";
import { Query } from "../core/query";
import { limit, plainName, vectors } from "../core/server";
import { isLike, remembered } from "../core/state";
import * as words from "../words.json";
import { type Texts, turnsOf } from "./turns";

type Kind = "text" | "conversation";

const MAX_CONCEPTS = 64;
/** Vectors that one request reads token by token; the others are read once they are chosen. */
const mostAtOnce = () => limit("max_readouts", 8);
export const kind = signal<Kind>("text");
export const text = remembered("text", words.review);
const EXAMPLE = words.conversation as readonly Message[];
export const messages = remembered("conversation", EXAMPLE);

/** What is sent to be read. */
type Source = { texts: string[] } | { messages: Message[] };

type Reading = NonNullable<Awaited<ReturnType<typeof ask>>>;

/** What was read last: a text against all concepts, then one more concept or layer of it. */
export const question = new Query((stop, read: (stop: AbortSignal) => Promise<Reading | null>) => read(stop));
export const { busy, error } = question;
export const reading = question.data;
export const stop = () => question.stop();
export const chosen = signal<string | null>(null);
export const layer = signal<number | null>(null);

/** What must be written before anything can be read; null when nothing is missing. */
export const missing = computed<string | null>(() => {
  if (kind.value === "text") return text.value.trim() === "" ? "Write a text first." : null;
  return messages.value.some((message) => message.content.trim() !== "") ? null : "Write a message first.";
});

export const shownScores = computed<readonly (number | null)[]>(() => {
  const name = chosen.value;
  if (name === null || layer.value === null) return [];
  return reading.value?.scores.get(name)?.get(layer.value) ?? [];
});

/** The layers at which the chosen vector has been read. */
export const knownLayers = computed<number[]>(() =>
  chosen.value === null ? [] : [...(reading.value?.scores.get(chosen.value)?.keys() ?? [])].sort((a, b) => a - b),
);

const source = (): Source => (kind.value === "text" ? { texts: [text.value] } : { messages: [...messages.value] });

/** Whether the reading that runs is of a text; else it is of one more concept of the text that is shown. */
let ofText = false;

/** Finds the concepts that stand out against neutral texts, then reads the text token by token against each of them. */
export async function read(): Promise<void> {
  if ((vectors.value ?? []).length === 0 || missing.value !== null) return;
  const given = source();
  ofText = true;
  const found = await question.ask((stop) => ask(given, stop));
  if (found === null || found !== reading.value) return;
  const names = [...found.scores.keys()];
  batch(() => {
    if (chosen.value === null || !names.includes(chosen.value)) chosen.value = names[0] ?? null;
    layer.value = usualLayer();
  });
}

/** Returns the source, which may have changed since, its turns and concepts, and vector -> layer -> a score per token of the whole text. A
 * concept that was not looked at yet may be absent. */
async function ask(given: Source, signal: AbortSignal) {
  const body = { ...given, threshold: 0, top: MAX_CONCEPTS };
  const explained = await dataOf<Explanation>(api.POST("/v1/explain", { body, signal }));
  const standing = (explained.texts[0]?.concepts ?? []).map((one) => plainName(one.vector));
  const looked = standing.filter((name) => name === chosen.value); // it stays in view
  const names = [...new Set([...looked, ...standing])].slice(0, mostAtOnce());
  const answer = await dataOf<Readout>(api.POST("/v1/readout", { body: { ...given, vectors: names }, signal }));
  const found = answer.texts[0];
  if (!found) return null;
  const messages = "messages" in given ? given.messages : given.texts.map((content) => ({ role: "text", content }));
  const turns = turnsOf(found.tokens, messages);
  const shown = new Set(turns.flatMap((turn) => turn.tokens.map((token) => token.index)));
  return {
    source: given,
    turns,
    scores: new Map(names.map((name) => [name, byLayer(found.readout[name] ?? {})] as const)),
    standouts: standoutsOf(explained, found.tokens, shown),
    warnings: explained.warnings,
  };
}

const byLayer = (readout: Record<string, { scores: (number | null)[] }>): Map<number, readonly (number | null)[]> =>
  new Map(Object.entries(readout).map(([key, one]) => [Number(key), one.scores]));

/** Reads what was read last against one vector at every layer, for the layer picker. */
export const readAllLayers = (name: string): Promise<void> => readOne(name, { layers: "all" });

/** Reads what was read last against one vector: at its own layer, or at those that are asked for. */
async function readOne(name: string, at: { layers?: "all" }): Promise<void> {
  const before = reading.value;
  if (!before) return;
  ofText = false;
  const body = { ...before.source, vectors: [name], ...at };
  const found = await question.ask(async (signal) => {
    const answer = await dataOf<Readout>(api.POST("/v1/readout", { body, signal }));
    return { ...before, scores: new Map(before.scores).set(name, byLayer(answer.texts[0]?.readout[name] ?? {})) };
  });
  if (found !== null && chosen.value === name && !knownLayers.value.includes(layer.value ?? -1)) layer.value = usualLayer(); // biome-ignore format: one line
}

/** What a link to this view holds: what is read, not what was found. */
export const readState = (): object => (kind.value === "text" ? { text: text.value } : { messages: messages.value });

/** Restores what `readState` gave; anything else leaves the view as it is. */
export function restoreRead(state: unknown): void {
  const given = state as { text?: unknown; messages?: unknown };
  const before = JSON.stringify(readState());
  if (typeof given.text === "string") {
    kind.value = "text";
    text.value = given.text;
  } else if (isLike(given.messages, EXAMPLE)) {
    kind.value = "conversation";
    messages.value = given.messages;
  } else return;
  if (JSON.stringify(readState()) === before) return;
  question.forget(); // it was of the former text
}

/** Shows a concept; one that was not read token by token yet is read now, unless another text is being read. */
export function choose(name: string): void {
  chosen.value = name;
  const unread = reading.value !== null && !reading.value.scores.has(name);
  if (unread && !(busy.value && ofText)) void readOne(name, {});
  const layers = knownLayers.value;
  if (layer.value === null || !layers.includes(layer.value)) layer.value = usualLayer();
}

/** The layer at which the chosen concept stands out, which it is read at in any case. */
const usualLayer = (): number | null =>
  reading.value?.standouts.find((one) => one.vector === chosen.value)?.layer ?? knownLayers.value[0] ?? null;

const MAX_CARRIERS = 3;

/** Returns the concepts of the first text in the order of the server, the largest deviation first (`z` in standard deviations of neutral
 * texts), each with the words that carry it most. Words that the chat template adds carry nothing: only the tokens at `shown` do. */
export const standoutsOf = (answer: Explanation, tokens: Texts, shown: ReadonlySet<number>) =>
  (answer.texts[0]?.concepts ?? []).map(({ vector, layer, score, z, tokens: found }) => {
    const carrying = found.map(({ index }) => index).filter((index) => shown.has(index));
    return { vector: plainName(vector), layer, mean: score, z, carriers: carriersOf(carrying, tokens) };
  });

/** Returns the words around tokens: a token inside a word says little alone. No word comes twice. */
export function carriersOf(indices: readonly number[], tokens: Texts): string[] {
  const isInside = (at: number) =>
    /^[\p{L}\p{N}'’]/u.test(tokens[at]?.text ?? "") && /[\p{L}\p{N}'’]$/u.test(tokens[at - 1]?.text ?? "");
  const around = indices.map((index) => {
    let [from, to] = [index, index + 1];
    while (from > 0 && isInside(from)) from--;
    while (to < tokens.length && isInside(to)) to++;
    return tokens.slice(from, to).map(({ text }) => text).join("").trim(); // biome-ignore format: one line
  });
  const words = around.filter((word) => /[\p{L}\p{N}]/u.test(word));
  return [...new Set(words)].slice(0, MAX_CARRIERS);
}
