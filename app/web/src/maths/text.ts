import { dsvFormat } from "d3-dsv";
import { diffArrays } from "diff";

/** Shows the white space of a token, which would not be seen. A space before a word is left out. */
export const visible = (text: string): string =>
  text.replace(/^ (?=[\S\n\t])/, "").replace(/[\n\t ]/g, (space) => ({ "\n": "↵", "\t": "⇥" })[space] ?? "␣") || "∅";

/** Says a number of seconds as a person says it: "about 14 min". */
export function duration(seconds: number): string {
  if (seconds < 55) return `about ${Math.max(5, Math.round(seconds / 5) * 5)} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${(seconds / 3600).toFixed(1)} h`;
}

/** What a screen reader says for a token without words. */
export const blankName = (text: string): string =>
  text === "" ? "part of a character" : text.includes("\n") ? "line break" : "space";

/** Splits a text into words with the space before them; joined they are the text. */
export const words = (text: string): string[] => text.match(/\s*\S+|\s+$/g) ?? [];
/** Words that two texts may differ in; beyond it they differ everywhere, and finding where would take seconds. */
const MAX_EDITS = 1500;

/** For every token of a text, whether some character of it is of a word that `base` does not have there. */
export function changedTokens(base: string, tokens: readonly string[]): boolean[] {
  const text = tokens.join("");
  const runs = diffArrays(words(base), words(text), { maxEditLength: MAX_EDITS });
  const own = runs?.filter(({ removed }) => !removed) ?? [{ value: [text], added: true }];
  const changed = own.flatMap(({ value, added }) => Array<boolean>(value.join("").length).fill(added));
  let start = 0;
  return tokens.map((token) => {
    start += token.length;
    return changed.slice(start - token.length, start).includes(true);
  });
}

/** Parses CSV or tab-separated text: quoted fields, doubled quotes, line breaks inside quotes. */
export function parseTable(text: string): string[][] {
  const [first = ""] = text.split(/[\r\n]/, 1);
  const rows: string[][] = dsvFormat(first.includes("\t") ? "\t" : ",").parseRows(text);
  return rows.filter((cells) => cells.some((cell) => cell.trim() !== ""));
}

export type PairRow = { positive: string; negative: string };

/** The columns of a table of pairs that its first row names; the first two where it names none. */
function headOf(rows: readonly string[][]): { positive: number; negative: number; named: boolean } {
  const head = rows[0]?.map((cell) => cell.trim().toLowerCase()) ?? [];
  const [positive, negative] = [head.indexOf("positive"), head.indexOf("negative")];
  return positive >= 0 && negative >= 0
    ? { positive, negative, named: true }
    : { positive: 0, negative: 1, named: false };
}

/** Reads pairs from JSONL ({"positive", "negative"} a line) or from two columns, with or without a header. */
export function parsePairs(text: string): PairRow[] {
  if (text.trimStart().startsWith("{"))
    return linesOf(text).map((line, index) => {
      let value: Partial<PairRow>;
      try {
        value = JSON.parse(line);
      } catch {
        throw new Error(`Line ${index + 1} is not valid JSON.`);
      }
      const { positive, negative } = value;
      if (typeof positive !== "string" || typeof negative !== "string")
        throw new Error(`Line ${index + 1} needs the texts "positive" and "negative".`);
      return { positive, negative };
    });
  const rows = parseTable(text);
  const { positive, negative, named } = headOf(rows);
  const cell = (row: readonly string[], at: number) => row[at]?.trim() ?? "";
  return rows.slice(named ? 1 : 0).map((row) => ({ positive: cell(row, positive), negative: cell(row, negative) }));
}

/** Whether a text that is pasted is a table of pairs, and not one text of several lines: every row has two cells, or is JSON. */
export function looksLikePairs(text: string): boolean {
  const lines = linesOf(text);
  if (lines.length > 0 && lines.every((line) => line.startsWith("{") && line.endsWith("}"))) return true;
  if (lines.length < 2) return false;
  const rows = parseTable(text);
  return (
    headOf(rows).named ||
    (rows.length > 1 && rows.every((row) => row.length === 2 && row.every((cell) => cell.trim() !== "")))
  );
}

export const linesOf = (text: string): string[] => text.split(/\r?\n/).flatMap((line) => line.trim() || []);

/** Returns a text for a table that a spreadsheet takes as a text: one that begins like a formula has an apostrophe in front. */
export const guarded = (text: string): string => (/^[=+\-@\t\r]/.test(text) ? `'${text}` : text);
