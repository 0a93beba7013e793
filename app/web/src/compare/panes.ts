import type { ServerError } from "../api/errors";
import type { AgainstBaseline, Applied, ArmAnswer, CompareAnswer, Metrics, Token, TokenPiece } from "../api/types";
import { changedSpans, changedTokens } from "../maths/diff";

export interface PaneChoice {
  text: string;
  tokens: readonly Token[];
  finish: string | null;
}

/** One arm as it is shown: its answers so far, and how it stands once it has ended. */
export interface Pane {
  name: string;
  choices: readonly PaneChoice[];
  steering: Applied | null;
  metrics: Metrics | null;
  against: AgainstBaseline | null;
  error: string | null;
}

const NO_CHOICE: PaneChoice = { text: "", tokens: [], finish: null };

export function emptyPane(name: string, n: number): Pane {
  return {
    name,
    choices: Array.from({ length: n }, () => NO_CHOICE),
    steering: null,
    metrics: null,
    against: null,
    error: null,
  };
}

/** Collects the events of a comparison. Reading it gives new panes only for arms that went on since. */
export class PaneCollector {
  private panes: Pane[];
  private pending: TokenPiece[] = [];
  tokens = 0;

  constructor(names: readonly string[], n: number) {
    this.panes = names.map((name) => emptyPane(name, n));
  }

  /** Whether nothing has arrived yet: what was shown before stays until then. */
  get isEmpty(): boolean {
    return this.tokens === 0 && this.panes.every((pane) => pane.error === null && pane.steering === null);
  }

  add(piece: TokenPiece): void {
    this.pending.push(piece);
    if (piece.id !== null && piece.id !== undefined) this.tokens++;
  }

  fail(error: ServerError & { arm: string }): void {
    this.panes = this.panes.map((pane) => (pane.name === error.arm ? { ...pane, error: error.error.message } : pane));
  }

  finish(answer: CompareAnswer): void {
    this.pending = [];
    this.panes = answer.arms.map(finishedPane);
  }

  /** Applies what has arrived since the last call. */
  current(): Pane[] {
    const grown = new Map<string, TokenPiece[]>();
    for (const piece of this.pending) {
      const name = piece.arm ?? "";
      grown.set(name, [...(grown.get(name) ?? []), piece]);
    }
    this.pending = [];
    this.panes = this.panes.map((pane) => {
      const pieces = grown.get(pane.name);
      return pieces ? { ...pane, choices: pane.choices.map((one, index) => extended(one, pieces, index)) } : pane;
    });
    return this.panes;
  }
}

function extended(choice: PaneChoice, pieces: readonly TokenPiece[], index: number): PaneChoice {
  const own = pieces.filter((piece) => piece.choice === index);
  if (own.length === 0) return choice;
  const text = choice.text + own.map((piece) => piece.text).join("");
  return { ...choice, text, tokens: [...choice.tokens, ...own] };
}

/** Returns a finished arm as a pane. */
export function finishedPane(arm: ArmAnswer): Pane {
  return {
    name: arm.name,
    choices: arm.choices.map((choice) => ({
      text: choice.text,
      tokens: (choice.tokens ?? [{ id: null, text: choice.text }]) as Token[],
      finish: choice.finish_reason,
    })),
    steering: arm.steering,
    metrics: arm.metrics ?? null,
    against: arm.against_baseline ?? null,
    error: arm.error?.message ?? null,
  };
}

export type Shade = "reading" | "surprise" | "kl" | "difference";

/** Returns the value of a token in a way of shading; null where it was not measured. `scores`: what the answer says, by token. */
export function shadeValue(
  pane: Pane,
  choice: number,
  index: number,
  shade: Shade,
  scores: readonly (number | null)[],
): number | null {
  const token = pane.choices[choice]?.tokens[index];
  if (!token) return null;
  if (shade === "surprise") return token.logprob == null ? null : -token.logprob;
  if (shade === "kl") return pane.against?.kl_per_token[choice]?.[index] ?? null;
  return shade === "reading" ? (scores[index] ?? null) : null;
}

/** For every token of an answer, whether the baseline has other words there. */
export function differences(pane: Pane, base: Pane, choice: number): boolean[] {
  const [own, other] = [pane.choices[choice], base.choices[choice]];
  if (!own || !other) return [];
  const texts = own.tokens.map((token) => token.text);
  return changedTokens(changedSpans(other.text, texts.join("")), texts);
}
