import { computed } from "@preact/signals";
import { api, dataOf } from "../api/client";
import type { Readout } from "../api/types";
import { Query } from "../core/query";
import { scoresOfParts } from "../read/turns";
import type { CompareBody } from "./draft";
import type { Pane } from "./run";

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

/** Reads the answers of a run against a vector, unless that was done. */
export async function readAnswers(asked: CompareBody, panes: readonly Pane[], vector: string): Promise<void> {
  const before = readBack.data.peek();
  if (before?.asked !== asked || before.vector !== vector) await readBack.ask(asked, panes, vector);
}

async function read(
  signal: AbortSignal,
  asked: CompareBody,
  panes: readonly Pane[],
  vector: string,
): Promise<ReadBack> {
  const answers = panes.flatMap((pane) =>
    pane.choices.map(({ text, tokens }, choice) => ({ key: keyOf(pane.name, choice), text, tokens })),
  );
  const written = answers.filter(({ text }) => text !== "");
  if (written.length === 0) return { asked, vector, answers: new Map() };
  const body = { texts: written.map(({ text }) => text), vectors: [vector] };
  const { texts } = await dataOf<Readout>(api.POST("/v1/readout", { body, signal }));
  const found = written.map(({ key, tokens }, index) => [key, readingOf(texts[index], tokens, vector)] as const);
  return { asked, vector, answers: new Map(found) };
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
  const found = readBack.data.value;
  return found?.asked === asked && found?.vector === vector ? found?.answers.get(keyOf(pane, choice)) : undefined;
}

function keyOf(pane: string, choice: number): string {
  return `${choice} ${pane}`;
}
