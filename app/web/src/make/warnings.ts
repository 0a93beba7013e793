import { words } from "../maths/diff";
import type { PairRow } from "../maths/table";

/** As the server judges it. */
const ENOUGH = 20;
const LENGTH_RATIO = 1.5;
const SHARED_WORDS = 0.08;

/** Returns the rows that have both sides. */
export function complete(rows: readonly PairRow[]): PairRow[] {
  return rows.filter((row) => row.positive.trim() !== "" && row.negative.trim() !== "");
}

/** Says what may make the vector worse, while the examples are still being written. */
export function warningsFor(rows: readonly PairRow[]): string[] {
  const pairs = complete(rows);
  if (pairs.length === 0) return [];
  const found: string[] = [];
  const unfinished = rows.filter((row) => (row.positive.trim() === "") !== (row.negative.trim() === "")).length;
  if (unfinished > 0) found.push(`${count(unfinished, "pair has", "pairs have")} only one side and will be left out.`);
  if (pairs.length < ENOUGH)
    found.push(
      `${count(pairs.length, "pair is", "pairs are")} few: the quality cannot be measured well below ${ENOUGH}.`,
    );
  const equal = pairs.filter((row) => row.positive.trim() === row.negative.trim()).length;
  if (equal > 0) found.push(`${count(equal, "pair has", "pairs have")} the same text on both sides.`);
  const repeated = pairs.length - new Set(pairs.map((row) => `${row.positive}\u0000${row.negative}`)).size;
  if (repeated > 0) found.push(`${count(repeated, "pair is", "pairs are")} there twice.`);
  found.push(...lengthWarning(pairs), ...topicWarning(pairs));
  return found;
}

function lengthWarning(pairs: readonly PairRow[]): string[] {
  const total = (side: keyof PairRow) => pairs.reduce((sum, row) => sum + row[side].trim().length, 0);
  const [positive, negative] = [total("positive"), total("negative")];
  const ratio = Math.max(positive, negative) / Math.max(Math.min(positive, negative), 1);
  if (ratio < LENGTH_RATIO) return [];
  const longer = positive > negative ? "positive" : "negative";
  return [
    `The lengths differ: the ${longer} texts are ${ratio.toFixed(1)} times as long. The vector may learn length.`,
  ];
}

function topicWarning(pairs: readonly PairRow[]): string[] {
  const apart = pairs.filter((row) => shared(row) < SHARED_WORDS).length;
  if (apart * 2 < pairs.length) return [];
  return ["The two sides share few words. Is it the same topic on both? The vector may learn the topic."];
}

/** The share of words that both sides of a pair have, from 0 to 1. */
function shared(row: PairRow): number {
  const [a, b] = [row.positive, row.negative].map(
    (text) => new Set(words(text.toLowerCase()).map((word) => word.trim().replace(/[^\p{L}\p{N}]/gu, ""))),
  ) as [Set<string>, Set<string>];
  const both = [...a].filter((word) => b.has(word)).length;
  return both / Math.max(new Set([...a, ...b]).size, 1);
}

function count(n: number, one: string, many: string): string {
  return n === 1 ? `1 ${one}` : `${n} ${many}`;
}
