import { parseTable } from "../maths/table";

export interface TextSet {
  texts: string[];
  /** A label per text; null where they have none. */
  labels: string[] | null;
}

/** Reads one text a line, or a table of text and label with or without a header. */
export function parseTexts(input: string): TextSet {
  const lines = input.split(/\r?\n/).filter((line) => line.trim() !== "");
  const tabbed = lines.some((line) => line.includes("\t"));
  const rows = tabbed || /^"?text"?,/i.test(input) ? parseTable(input) : lines.map((line) => [line]);
  const headed = rows[0]?.[0]?.trim().toLowerCase() === "text";
  const body = (headed ? rows.slice(1) : rows).filter((row) => row[0]?.trim());
  const labelled = body.length > 0 && body.every((row) => row[1]?.trim());
  return {
    texts: body.map((row) => row[0]!.trim()),
    labels: labelled ? body.map((row) => row[1]!.trim()) : null,
  };
}

/** Returns the pairs of a concept as texts with the words of the two poles as labels. */
export function conceptTexts(detail: ConceptDetail): TextSet {
  const plain = detail.data.filter((pair) => typeof pair.positive === "string" && typeof pair.negative === "string");
  return {
    texts: plain.flatMap((pair) => [pair.positive as string, pair.negative as string]),
    labels: plain.flatMap(() => [detail.positive, detail.negative]),
  };
}

export interface ConceptDetail {
  positive: string;
  negative: string;
  data: { positive: unknown; negative: unknown }[];
}
