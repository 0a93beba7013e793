import type { Explanation } from "../api/types";

/** A concept of the library as it stands in the text: `z` in standard deviations of neutral texts. */
export interface Standout {
  vector: string;
  layer: number;
  mean: number | null;
  z: number | null;
  /** The words that carry it most, as they stand in the text. */
  carriers: string[];
}

const MAX_CARRIERS = 3;

/** Returns the concepts of the first text in the order of the server: the largest deviation first. */
export function standoutsOf(answer: Explanation, tokens: readonly { text: string }[]): Standout[] {
  return (answer.texts[0]?.concepts ?? []).map((one) => ({
    vector: nameOf(one.vector),
    layer: one.layer,
    mean: one.score,
    z: one.z,
    carriers: carriersOf(
      one.tokens.map((token) => token.index),
      tokens,
    ),
  }));
}

/** Returns the words around tokens: a token inside a word says little alone. No word comes twice. */
export function carriersOf(indices: readonly number[], tokens: readonly { text: string }[]): string[] {
  const words = indices.map((index) => wordAround(index, tokens)).filter((word) => /[\p{L}\p{N}]/u.test(word));
  return [...new Set(words)].slice(0, MAX_CARRIERS);
}

function wordAround(index: number, tokens: readonly { text: string }[]): string {
  const continues = (at: number) => /^[\p{L}\p{N}'’]/u.test(tokens[at]?.text ?? "");
  let from = index;
  while (from > 0 && continues(from) && /[\p{L}\p{N}'’]$/u.test(tokens[from - 1]?.text ?? "")) from--;
  let to = index + 1;
  while (to < tokens.length && continues(to) && /[\p{L}\p{N}'’]$/u.test(tokens[to - 1]?.text ?? "")) to++;
  const word = tokens
    .slice(from, to)
    .map((token) => token.text)
    .join("");
  return word.trim();
}

/** Returns the name in an id such as `sentiment@3`. */
export function nameOf(id: string): string {
  return id.split("@")[0] ?? id;
}
