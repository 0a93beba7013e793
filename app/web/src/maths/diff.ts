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
