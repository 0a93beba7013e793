/** Shows the white space of a token, which would not be seen. A space before a word is left out. */
export function visible(text: string): string {
  const shown = text
    .replaceAll("\n", "↵")
    .replaceAll("\t", "⇥")
    .replace(/^ (?=\S)/, "");
  return shown.replaceAll(" ", "␣") || "∅";
}

/** Says a number of seconds as a person says it: "about 14 min". */
export function duration(seconds: number): string {
  if (seconds < 55) return `about ${Math.max(5, Math.round(seconds / 5) * 5)} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${(seconds / 3600).toFixed(1)} h`;
}

/** What a screen reader says for a token without words. */
export function blankName(text: string): string {
  if (text === "") return "part of a character";
  return text.includes("\n") ? "line break" : "space";
}

export interface Span {
  kind: "equal" | "changed";
  text: string;
}

const MAX_CELLS = 4_000_000;

/** Splits a text into words with the space before them; joined they are the text. */
export function words(text: string): string[] {
  return text.match(/\s*\S+|\s+$/g) ?? [];
}

/** Marks the words of `other` that are not in a longest common subsequence with `base`. */
export function changedSpans(base: string, other: string): Span[] {
  const a = words(base);
  const b = words(other);
  const kept = commonIn(a, b);
  const spans: Span[] = [];
  b.forEach((word, i) => {
    const kind = kept[i] ? "equal" : "changed";
    const last = spans.at(-1);
    if (last?.kind === kind) last.text += word;
    else spans.push({ kind, text: word });
  });
  return spans;
}

/** For every word of `b`, whether it belongs to a longest common subsequence with `a`. */
function commonIn(a: readonly string[], b: readonly string[]): boolean[] {
  const width = b.length + 1;
  if (a.length * width > MAX_CELLS) return b.map((word, i) => word === a[i]);
  const table = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      table[i * width + j] =
        a[i] === b[j]
          ? table[(i + 1) * width + j + 1]! + 1
          : Math.max(table[(i + 1) * width + j]!, table[i * width + j + 1]!);
  const kept = new Array<boolean>(b.length).fill(false);
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) {
      kept[j] = true;
      i++;
      j++;
    } else if (table[(i + 1) * width + j]! >= table[i * width + j + 1]!) i++;
    else j++;
  }
  return kept;
}

/** For every token, whether some character of it lies in a changed span. Spans and tokens cover the same text. */
export function changedTokens(spans: readonly Span[], tokens: readonly string[]): boolean[] {
  const ranges: [number, number][] = [];
  let position = 0;
  for (const span of spans) {
    if (span.kind === "changed") ranges.push([position, position + span.text.length]);
    position += span.text.length;
  }
  let start = 0;
  return tokens.map((token) => {
    const end = start + token.length;
    const hit = ranges.some(([from, to]) => from < end && to > start);
    start = end;
    return hit;
  });
}

/** Parses CSV or tab-separated text: quoted fields, doubled quotes, line breaks inside quotes. */
export function parseTable(text: string): string[][] {
  const separator = firstLine(text).includes("\t") ? "\t" : ",";
  const rows: string[][] = [];
  let row: string[] = [];
  let field = "";
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i]!;
    if (quoted) {
      if (c !== '"') field += c;
      else if (text[i + 1] === '"') {
        field += '"';
        i++;
      } else quoted = false;
    } else if (c === '"' && field === "") quoted = true;
    else if (c === separator) {
      row.push(field);
      field = "";
    } else if (c === "\n" || c === "\r") {
      if (c === "\r" && text[i + 1] === "\n") i++;
      rows.push([...row, field]);
      row = [];
      field = "";
    } else field += c;
  }
  if (field !== "" || row.length > 0) rows.push([...row, field]);
  return rows.filter((cells) => cells.some((cell) => cell.trim() !== ""));
}

function firstLine(text: string): string {
  return text.slice(0, Math.max(text.search(/[\r\n]/), 0) || text.length);
}

export interface PairRow {
  positive: string;
  negative: string;
}

/** Reads pairs from JSONL ({"positive", "negative"} a line) or from two columns, with or without a header. */
export function parsePairs(text: string): PairRow[] {
  if (text.trimStart().startsWith("{")) return parseJsonLines(text);
  const rows = parseTable(text);
  const header = rows[0]?.map((cell) => cell.trim().toLowerCase()) ?? [];
  const positive = header.indexOf("positive");
  const negative = header.indexOf("negative");
  const named = positive >= 0 && negative >= 0;
  return (named ? rows.slice(1) : rows).map((row) => ({
    positive: row[named ? positive : 0]?.trim() ?? "",
    negative: row[named ? negative : 1]?.trim() ?? "",
  }));
}

/** Whether a text that is pasted is a table of pairs, and not one text of several lines: every row has two cells, or is JSON. */
export function looksLikePairs(text: string): boolean {
  const lines = linesOf(text);
  if (lines.length > 0 && lines.every((line) => line.startsWith("{") && line.endsWith("}"))) return true;
  if (lines.length < 2) return false;
  const rows = parseTable(text);
  const header = rows[0]?.map((cell) => cell.trim().toLowerCase()) ?? [];
  if (header.includes("positive") && header.includes("negative")) return true;
  return rows.length > 1 && rows.every((row) => row.length === 2 && row.every((cell) => cell.trim() !== ""));
}

function parseJsonLines(text: string): PairRow[] {
  return text
    .split(/\r?\n/)
    .filter((line) => line.trim() !== "")
    .map((line, index) => {
      const value = parsedLine(line, index);
      if (typeof value.positive !== "string" || typeof value.negative !== "string")
        throw new Error(`Line ${index + 1} needs the texts "positive" and "negative".`);
      return { positive: value.positive, negative: value.negative };
    });
}

function parsedLine(line: string, index: number): { positive?: unknown; negative?: unknown } {
  try {
    return JSON.parse(line) as object;
  } catch {
    throw new Error(`Line ${index + 1} is not valid JSON.`);
  }
}

/** Returns the lines of a text that are not empty. */
export function linesOf(text: string): string[] {
  return text
    .split(/\r?\n/)
    .map((line) => line.trim())
    .filter((line) => line !== "");
}
