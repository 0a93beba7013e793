export type Texts = readonly { text: string }[];
type Scores = readonly (number | null)[];

/** A token with its position in the whole text that was read. */
type TurnToken = { index: number; text: string };
/** One message, or the whole of a plain text, with the tokens that show its words. */
type Turn = { role: string; tokens: TurnToken[] };

/** Finds each message among the tokens of a rendered conversation; what the template adds belongs to no turn. */
export function turnsOf(tokens: Texts, contents: readonly { role: string; content: string }[]): Turn[] {
  const { whole, starts } = joined(tokens);
  let from = 0;
  return contents.map(({ role, content }) => {
    const place = placeOf(content.trim(), whole, from);
    const all = tokens.map(({ text }, index) => ({ index, text }));
    if (place === null) return { role, tokens: contents.length === 1 ? all : [] };
    const { begin, end } = place;
    from = end;
    const own = tokens.flatMap(({ text }, index) => {
      const start = starts[index] ?? 0;
      return start < end && start + text.length > begin ? [{ index, text: spelled(text, start, place) }] : [];
    });
    return { role, tokens: own };
  });
}

/** Returns the scores of the parts of a text, in whatever tokens it was scored. A part has the score of what ends it. */
export function scoresOfParts(parts: readonly string[], tokens: Texts, scores: Scores): (number | null)[] {
  const { whole, starts } = joined(tokens);
  const place = placeOf(parts.join(""), whole, 0);
  if (place === null) return parts.map(() => null);
  const byEnd: (number | null)[] = []; // by the position of a character, counted from the begin of the text
  tokens.forEach(({ text }, index) => {
    const start = starts[index] ?? 0;
    if (start >= place.end || start + text.length <= place.begin) return;
    const length = spelled(text, start, place).length - Math.max(0, place.begin - start);
    const score = index === 0 ? null : (scores[index] ?? null); // the first token of a model belongs to no word
    for (let at = 0; at < length; at++) byEnd.push(score);
  });
  let end = 0;
  return parts.map((part) => {
    end += part.length;
    return part === "" ? null : (byEnd[end - 1] ?? null);
  });
}

function joined(tokens: Texts): { whole: string; starts: number[] } {
  const starts: number[] = [];
  let whole = "";
  for (const token of tokens) {
    starts.push(whole.length);
    whole += token.text;
  }
  return { whole, starts };
}

interface Place {
  begin: number;
  end: number;
  /** Where the tokens hold parts of characters, and the characters that they are. */
  split: readonly { from: number; to: number; characters: string }[];
}

/** What stands for a part of a character: the tokens of an emoji are such parts. */
const PART = "�";

/** Finds a message in the text of all tokens, also where characters of it are split into several tokens. */
function placeOf(content: string, whole: string, from: number): Place | null {
  const exact = whole.indexOf(content, from);
  if (exact >= 0) return { begin: exact, end: exact + content.length, split: [] };
  if (!whole.includes(PART)) return null;
  const [given, read] = [collapsed(content), collapsed(whole)];
  const at = read.text.indexOf(
    given.text,
    read.starts.findIndex((start) => start >= from),
  );
  if (at < 0) return null;
  const start = (index: number) => read.starts[at + index] ?? whole.length;
  const split = [...given.text].flatMap((character, index) => {
    if (character !== PART || !whole.slice(start(index), start(index + 1)).includes(PART)) return [];
    return [{ from: start(index), to: start(index + 1), characters: content.slice(...given.starts.slice(index, index + 2)) }]; // biome-ignore format: one line
  });
  return { begin: start(0), end: start(given.text.length), split };
}

/** Puts one mark for each run of characters that a token may hold a part of, so that both texts can be held against each other. */
function collapsed(text: string): { text: string; starts: number[] } {
  const pieces = [...text.matchAll(/[\u0080-\uffff]+|[\0-\u007f]/g)];
  return {
    text: pieces.map(([piece]) => (piece.charCodeAt(0) < 0x80 ? piece : PART)).join(""),
    starts: [...pieces.map((piece) => piece.index), text.length],
  };
}

/** Returns the text of a token; the last token of split characters has all of them. */
function spelled(text: string, start: number, { split }: Place): string {
  if (split.length === 0) return text;
  const characters = Array.from({ length: text.length }, (_, offset) => {
    const run = split.find((one) => one.from <= start + offset && start + offset < one.to);
    if (run === undefined) return text[offset];
    return start + offset === run.to - 1 ? run.characters : "";
  });
  return characters.join("");
}
