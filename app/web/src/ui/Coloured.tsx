import { magnitude } from "../maths/scales";

/** How a word is coloured: by a score with a sign, by an amount, or because it has changed. `full` has the full colour. */
export interface Mark {
  score?: number | null;
  amount?: number | null;
  full?: number;
  changed?: boolean;
}

/** The class and the style of a coloured word. */
export function lookOf({ score, amount, full = 1, changed }: Mark): { class: string; style?: Record<string, number> } {
  if (changed) return { class: "token changed" };
  const value = score ?? amount;
  if (value === null || value === undefined) return { class: "token" };
  const kind = score == null ? "amount" : value < 0 ? "below" : "above";
  const share = magnitude(value, full);
  return { class: `token ${kind}`, ...(share > 0 ? { style: { "--m": share } } : {}) };
}

interface LegendProps {
  below: string;
  middle: string;
  above: string;
}

/** What the colours of scores mean. */
export function ScoreLegend({ below, middle, above }: LegendProps) {
  return (
    <span class="row small legend">
      <span class="below" style={{ "--m": 1 }}>
        {below}
      </span>
      <span>{middle}</span>
      <span class="above" style={{ "--m": 1 }}>
        {above}
      </span>
    </span>
  );
}
