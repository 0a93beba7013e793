import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import { Newest } from "../api/newest";
import type { Readout } from "../api/types";
import { scoresOfParts } from "../read/turns";
import type { CompareBody } from "./draft";
import type { Pane } from "./panes";

/** What one finished answer says about a vector. */
export interface AnswerReading {
  mean: number | null;
  /** By token of the answer. */
  scores: readonly (number | null)[];
}

interface ReadBack {
  asked: CompareBody;
  vector: string;
  answers: ReadonlyMap<string, AnswerReading>;
}

/**
 * What the finished answers say about a vector: they are read again by the unsteered model. The scores that come with the tokens of
 * an answer are of the steered stream, and contain what was added.
 */
export const readBack = signal<ReadBack | null>(null);
export const readBackError = signal<unknown>(null);

/** All scores that are shown, for a scale that fits every pane. */
export const allScores = computed<number[]>(() =>
  [...(readBack.value?.answers.values() ?? [])].flatMap(({ scores }) =>
    scores.filter((one): one is number => one !== null),
  ),
);

const newest = new Newest();

/** Whether the answers of a run were read against a vector, or could not be. */
export function wasRead(asked: CompareBody, vector: string): boolean {
  const found = readBack.value;
  return readBackError.value !== null || (found?.asked === asked && found.vector === vector);
}

/** Reads the answers of a run against a vector, unless that was done. */
export async function readAnswers(asked: CompareBody, panes: readonly Pane[], vector: string): Promise<void> {
  const before = readBack.peek();
  if (before?.asked === asked && before.vector === vector) return;
  newest.drop();
  readBack.value = null;
  readBackError.value = null;
  const answers = panes.flatMap((pane) =>
    pane.choices.map(({ text, tokens }, choice) => ({ key: keyOf(pane.name, choice), text, tokens })),
  );
  const written = answers.filter(({ text }) => text !== "");
  if (written.length === 0) {
    readBack.value = { asked, vector, answers: new Map() };
    return;
  }
  const body = { texts: written.map(({ text }) => text), vectors: [vector] };
  const show = ({ texts }: Readout) => {
    const found = written.map(({ key, tokens }, index) => [key, readingOf(texts[index], tokens, vector)] as const);
    readBack.value = { asked, vector, answers: new Map(found) };
  };
  try {
    await newest.ask(() => dataOf<Readout>(api.POST("/v1/readout", { body })), show);
  } catch (error) {
    readBackError.value = error;
  }
}

function readingOf(
  read: Readout["texts"][number] | undefined,
  parts: readonly { text: string }[],
  vector: string,
): AnswerReading {
  const layers = Object.values(read?.readout[vector] ?? {}); // those that the vector recommends, in order
  const found = layers[layers.length >> 1]; // the middle one, as the server reads the answers of a comparison
  if (!read || !found) return { mean: null, scores: [] };
  const texts = parts.map(({ text }) => text);
  return { mean: found.mean, scores: scoresOfParts(texts, read.tokens, found.scores) };
}

/** Returns what an answer says about a vector; undefined while that is not known. */
export function answerReading(
  asked: CompareBody | null,
  vector: string | null,
  pane: string,
  choice: number,
): AnswerReading | undefined {
  const found = readBack.value;
  return found?.asked === asked && found?.vector === vector ? found?.answers.get(keyOf(pane, choice)) : undefined;
}

function keyOf(pane: string, choice: number): string {
  return `${choice} ${pane}`;
}
