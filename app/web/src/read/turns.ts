export interface TurnToken {
  /** Position in the whole text that was read. */
  index: number;
  text: string;
}

/** One message, or the whole of a plain text, with the tokens that show its words. */
export interface Turn {
  role: string;
  tokens: TurnToken[];
}

/** Finds each message among the tokens of a rendered conversation; what the template adds belongs to no turn. */
export function turnsOf(
  tokens: readonly { text: string }[],
  contents: readonly { role: string; content: string }[],
): Turn[] {
  const starts: number[] = [];
  let whole = "";
  for (const token of tokens) {
    starts.push(whole.length);
    whole += token.text;
  }
  let from = 0;
  return contents.map(({ role, content }) => {
    const begin = whole.indexOf(content.trim(), from);
    if (begin < 0) return { role, tokens: contents.length === 1 ? all(tokens) : [] };
    const end = begin + content.trim().length;
    from = end;
    const own = tokens.flatMap((token, index) => {
      const start = starts[index] ?? 0;
      return start < end && start + token.text.length > begin ? [{ index, text: token.text }] : [];
    });
    return { role, tokens: own };
  });
}

function all(tokens: readonly { text: string }[]): TurnToken[] {
  return tokens.map((token, index) => ({ index, text: token.text }));
}
