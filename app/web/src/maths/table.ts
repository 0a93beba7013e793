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
