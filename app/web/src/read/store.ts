import { batch, computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import { isMessage } from "../api/messages";
import type { Explanation, Message, Readout } from "../api/types";
import { remembered, textOr } from "../frame/remembered";
import { limit } from "../frame/server";
import { vectors } from "../frame/vectors";
import { nameOf, type Standout, standoutsOf } from "./standing";
import { type Turn, turnsOf } from "./turns";

export type Kind = "text" | "conversation";

/** Concepts that are listed. */
const MAX_CONCEPTS = 64;

/** Vectors that one request reads token by token; the others are read once they are chosen. */
const mostAtOnce = () => limit("max_readouts", 8);

export const kind = signal<Kind>("text");
export const text = remembered(
  "text",
  "The hotel was a disgrace. Our suite smelled of smoke, the breakfast was cold, and nobody at the desk cared to help. " +
    "I was tired and miserable all week, and I would never stay in that dreadful place again.",
  textOr,
);
const EXAMPLE: readonly Message[] = [
  { role: "user", content: "I think my new business plan is brilliant. Do you agree?" },
  { role: "assistant", content: "Absolutely! It is the most brilliant plan I have ever seen, and you cannot fail." },
];
export const messages = remembered("conversation", EXAMPLE, (before) =>
  Array.isArray(before) && before.every(isMessage) ? before : undefined,
);
export const busy = signal(false);
export const error = signal<unknown>(null);

/** What is sent to be read. */
export type Source = { texts: string[] } | { messages: Message[] };

interface Reading {
  /** What the scores belong to; the fields may have changed since. */
  source: Source;
  standouts: Standout[];
  turns: Turn[];
  /** vector -> layer -> a score per token of the whole text. A concept that was not looked at yet may be absent. */
  scores: Map<string, Map<number, readonly (number | null)[]>>;
  /** What of the library was not read. */
  warnings: readonly string[];
}

export const reading = signal<Reading | null>(null);
export const chosen = signal<string | null>(null);
export const layer = signal<number | null>(null);

/** What must be written before anything can be read; null when nothing is missing. */
export const missing = computed<string | null>(() => {
  if (kind.value === "text") return text.value.trim() === "" ? "Write a text first." : null;
  return messages.value.some((message) => message.content.trim() !== "") ? null : "Write a message first.";
});

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

function source(): Source {
  return kind.value === "text" ? { texts: [text.value] } : { messages: [...messages.value] };
}

function contentsOf(given: Source): { role: string; content: string }[] {
  return "messages" in given ? given.messages : given.texts.map((content) => ({ role: "text", content }));
}

let abort: AbortController | null = null;

/** Whether the reading that runs is of a text; else it is of one more concept of the text that is shown. */
let ofText = false;

/** Does one reading. The one before is given up, so that only the newest is shown; `use` is not called after a stop. */
async function newest<T>(ask: (signal: AbortSignal) => Promise<T>, use: (answer: T) => void): Promise<void> {
  abort?.abort();
  const stopper = new AbortController();
  abort = stopper;
  busy.value = true;
  error.value = null;
  try {
    const answer = await ask(stopper.signal);
    if (!stopper.signal.aborted) batch(() => use(answer));
  } catch (failure) {
    if (!stopper.signal.aborted) error.value = failure;
  } finally {
    if (abort === stopper) busy.value = false;
  }
}

/** Gives up the reading that runs. */
export function stop(): void {
  abort?.abort();
}

/** Finds the concepts that stand out against neutral texts, then reads the text token by token against each of them. */
export async function read(): Promise<void> {
  if ((vectors.value ?? []).length === 0 || missing.value !== null) return;
  const given = source();
  ofText = true;
  await newest((signal) => ask(given, signal), show);
}

async function ask(given: Source, signal: AbortSignal): Promise<Reading | null> {
  const body = { ...given, threshold: 0, top: MAX_CONCEPTS };
  const explained = await dataOf<Explanation>(api.POST("/v1/explain", { body, signal }));
  const standing = (explained.texts[0]?.concepts ?? []).map((one) => nameOf(one.vector));
  const looked = standing.filter((name) => name === chosen.value); // it stays in view
  const names = [...new Set([...looked, ...standing])].slice(0, mostAtOnce());
  const answer = await dataOf<Readout>(api.POST("/v1/readout", { body: { ...given, vectors: names }, signal }));
  const found = answer.texts[0];
  if (!found) return null;
  return {
    source: given,
    turns: turnsOf(found.tokens, contentsOf(given)),
    scores: new Map(names.map((name) => [name, byLayer(found.readout[name] ?? {})])),
    standouts: standoutsOf(explained, found.tokens),
    warnings: explained.warnings,
  };
}

function show(found: Reading | null): void {
  if (found === null) return;
  const names = [...found.scores.keys()];
  reading.value = found;
  if (chosen.value === null || !names.includes(chosen.value)) chosen.value = names[0] ?? null;
  layer.value = usualLayer();
}

function byLayer(readout: Record<string, { scores: (number | null)[] }>): Map<number, readonly (number | null)[]> {
  return new Map(Object.entries(readout).map(([key, one]) => [Number(key), one.scores]));
}

/** Reads what was read last against one vector at every layer, for the layer picker. */
export function readAllLayers(name: string): Promise<void> {
  return readOne(name, { layers: "all" });
}

/** Reads what was read last against one vector: at its own layer, or at those that are asked for. */
async function readOne(name: string, at: { layers?: "all" }): Promise<void> {
  const before = reading.value;
  if (!before) return;
  ofText = false;
  const body = { ...before.source, vectors: [name], ...at };
  await newest(
    (signal) => dataOf<Readout>(api.POST("/v1/readout", { body, signal })),
    (answer) => {
      const scores = new Map(before.scores).set(name, byLayer(answer.texts[0]?.readout[name] ?? {}));
      reading.value = { ...before, scores };
    },
  );
}

/** What a link to this view holds: what is read, not what was found. */
export function readState(): object {
  return kind.value === "text" ? { text: text.value } : { messages: messages.value };
}

/** Restores what `readState` gave; anything else leaves the view as it is. */
export function restoreRead(state: unknown): void {
  const given = state as { text?: unknown; messages?: unknown };
  const before = JSON.stringify(readState());
  if (typeof given.text === "string") {
    kind.value = "text";
    text.value = given.text;
  } else if (Array.isArray(given.messages) && given.messages.every(isMessage)) {
    kind.value = "conversation";
    messages.value = given.messages;
  } else return;
  if (JSON.stringify(readState()) === before) return;
  stop();
  reading.value = null;
  error.value = null; // it was of the former text
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
function usualLayer(): number | null {
  const standout = reading.value?.standouts.find((one) => one.vector === chosen.value);
  return standout?.layer ?? knownLayers.value[0] ?? null;
}

export function setMessage(index: number, part: Partial<Message>): void {
  messages.value = messages.value.map((message, at) => (at === index ? { ...message, ...part } : message));
}
