import { computed } from "@preact/signals";
import { api, dataOf, type Readout } from "../api/client";
import { Query } from "../core/query";
import { poleAt } from "../core/server";
import { plain, signed } from "../maths/scales";
import { scoresOfParts } from "../read/turns";
import type { CompareBody } from "./draft";
import type { Pane } from "./run";

/** What the finished answers say about a vector: they are read again by the unsteered model. The scores that come with the tokens of
 * an answer are of the steered stream, and contain what was added. */
export const readBack = new Query(read);

/** All scores that are shown, for a scale that fits every pane. */
export const allScores = computed<number[]>(() =>
  [...(readBack.data.value?.answers.values() ?? [])].flatMap(({ scores }) =>
    scores.filter((one): one is number => one !== null),
  ),
);

/** Whether the answers of a run were read against a vector, or could not be. */
export function wasRead(asked: CompareBody, vector: string): boolean {
  const found = readBack.data.value;
  return readBack.error.value !== null || (found?.asked === asked && found.vector === vector);
}

/** Reads the answers of a run against a vector, unless that was done: then what is asked of another run since is given up. */
export async function readAnswers(asked: CompareBody, panes: readonly Pane[], vector: string): Promise<void> {
  const before = readBack.data.peek();
  if (before?.asked === asked && before.vector === vector) readBack.put(before);
  else await readBack.ask(asked, panes, vector);
}

async function read(signal: AbortSignal, asked: CompareBody, panes: readonly Pane[], vector: string) {
  const answers = panes.flatMap(({ name, choices }) =>
    choices.map(({ text, tokens }, choice) => ({ key: keyOf(name, choice), text, tokens })),
  );
  const written = answers.filter(({ text }) => text !== "");
  const body = { texts: written.map(({ text }) => text), vectors: [vector] };
  const { texts } =
    written.length === 0 ? { texts: [] } : await dataOf<Readout>(api.POST("/v1/readout", { body, signal }));
  const found = written.map(({ key, tokens }, index) => {
    const read = texts[index];
    const layers = Object.values(read?.readout[vector] ?? {}); // those that the vector recommends, in order
    const middle = layers[layers.length >> 1]; // as the server reads the answers of a comparison
    const parts = tokens.map(({ text }) => text);
    const scores = read && middle ? scoresOfParts(parts, read.tokens, middle.scores) : [];
    return [key, { mean: middle?.mean ?? null, scores }] as const;
  });
  return { asked, vector, answers: new Map(found) };
}

/** Returns what an answer says about a vector; undefined while that is not known. */
export function answerReading(asked: CompareBody | null, vector: string | null, pane: string, choice: number) {
  const found = readBack.data.value;
  return found?.asked === asked && found?.vector === vector ? found?.answers.get(keyOf(pane, choice)) : undefined;
}

const keyOf = (pane: string, choice: number): string => `${choice} ${pane}`;

/** Ratios of perplexities, steered to plain, up to which a text is called so. */
const FLUENCY: readonly (readonly [number, string])[] = [
  [1.2, "as fluent as before"],
  [1.6, "a little less fluent"],
  [2.5, "less fluent"],
  [Number.POSITIVE_INFINITY, "much less fluent"],
];

/** A shift below which two texts read alike, where no interval says more. */
const NOTICEABLE = 0.15;

/** Says in one sentence what an answer is against the plain one; null where that was not measured. */
export function sentenceOf(pane: Pane, base: Pane | undefined, vector: string | null): string | null {
  if (vector === null || base === undefined || pane.name === base.name) return null;
  const [here, there] = [pane.metrics?.readout[vector]?.mean, base.metrics?.readout[vector]?.mean];
  const difference = here == null || there == null ? null : here - there;
  // Of a thread with a history of its own there is no interval.
  const shift = pane.against?.readout_shift[vector] ?? { mean: difference, interval: null };
  if (shift.mean === null) return null;
  const amount = `(${shiftWords(shift)})`;
  const [low, high] = shift.interval ?? [];
  const sure = low == null || high == null ? null : low > 0 || high < 0;
  const [own, before] = [pane.metrics?.perplexity, base?.metrics?.perplexity];
  const rest = own && before ? `, ${fluencyWord(own / before)}` : "";
  if (sure === false) return `No sure effect on ${vector} ${amount}${rest}`;
  if (sure === null && Math.abs(shift.mean) < NOTICEABLE) return `Hardly different in ${vector} ${amount}${rest}`;
  return `${sure ? "Clearly more" : "More"} “${poleAt(vector, shift.mean)}” ${amount}${rest}`;
}

/** Says how fluent a text is by the ratio of its perplexity to that of the plain one. */
export const fluencyWord = (ratio: number): string => FLUENCY.find(([most]) => ratio <= most)![1];

/** A shift with half the width of its interval. */
export function shiftWords({ mean, interval }: { mean: number | null; interval?: readonly (number | null)[] | null }) {
  const [low, high] = interval ?? [];
  return `${signed(mean)}${low == null || high == null ? "" : ` ± ${plain((high - low) / 2, 2)}`}`;
}
