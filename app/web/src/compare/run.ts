import { batch, signal } from "@preact/signals";
import { group } from "d3-array";
import { apiKey, type CompareAnswer, isAbort, type Schemas, stream, type Token, type TokenPiece } from "../api/client";
import { capabilities } from "../core/server";
import { isLike } from "../core/state";
import { changedTokens } from "../maths/text";
import { announce } from "../ui/parts";
import type { CompareBody } from "./draft";

/** The plain answers that were shown, by model, prompt, seed and sampling: each is shown again whatever is steered beside it. */
const baselines = new Map<string, Pane>();
const MAX_BASELINES = 20;
const CUT = "The answers ended before they were complete. Was the server stopped?";

const baselineKey = ({ prompt, messages, seed, n, max_tokens, temperature, top_p }: CompareBody): string =>
  JSON.stringify([apiKey.peek(), capabilities.peek()?.model.fingerprint, prompt, messages, seed, n, max_tokens, temperature, top_p]); // biome-ignore format: one line

/** One comparison on the screen: what was asked, and its panes as they grow. */
export class ComparisonRun {
  readonly panes = signal<readonly Pane[]>([]);
  readonly running = signal(false);
  readonly error = signal<unknown>(null);
  readonly tokensPerSecond = signal<number | null>(null);
  /** What the panes show was asked with; each run has an object of its own. */
  readonly asked = signal<CompareBody | null>(null);
  private abort: AbortController | null = null;

  /** Runs a comparison; one that still runs is stopped first. What was shown stays until the first token. Returns whether it ended. */
  async start(body: CompareBody): Promise<boolean> {
    this.stop();
    const abort = new AbortController();
    this.abort = abort;
    const names = body.arms.map((arm) => arm.name);
    const collector = new PaneCollector(names, body.n);
    this.running.value = true;
    announce("Writing the answers.");
    this.error.value = this.tokensPerSecond.value = null;
    const started = performance.now();
    const baseline = baselineKey(body);
    let scheduled = false;
    const show = () => {
      scheduled = false;
      if (this.abort !== abort || collector.isEmpty) return;
      batch(() => {
        this.panes.value = withBaseline(collector.current(), body.baseline, baselines.get(baseline));
        this.asked.value = body;
      });
      this.tokensPerSecond.value = collector.tokens / ((performance.now() - started) / 1000);
    };
    const ask = async (request: object) => {
      let ended = false;
      const receive = (name: string, data: unknown) => {
        ended ||= name === "done";
        collector.take(name, data);
        if (!scheduled) requestAnimationFrame(show); // once a frame: many tokens may arrive between two, and typing stays smooth
        scheduled = true;
      };
      await stream("/v1/compare", request, receive, abort.signal);
      if (!ended) throw new Error(CUT);
    };
    try {
      const { threads, ...whole } = body;
      const own = (name: string) => ({ messages: threads?.[name], baseline: name });
      // One request, until the arms have said different things.
      const parts = threads ? body.arms.map((arm) => ({ ...whole, arms: [arm], ...own(arm.name) })) : [whole];
      await Promise.all(parts.map(ask));
      keepBaseline(baseline, collector.current().find((pane) => pane.name === body.baseline)); // biome-ignore format: one line
    } catch (error) {
      const cut = error instanceof TypeError && !collector.isEmpty; // the server was reached, and lost since
      if (this.abort === abort && !isAbort(error)) this.error.value = cut ? new Error(CUT) : error;
      abort.abort(); // the other threads, whose answers alone are no comparison
    }
    if (this.abort !== abort) return false;
    show();
    this.running.value = false;
    if (this.error.value === null) announce(abort.signal.aborted ? "Stopped." : "The answers are complete.");
    return !abort.signal.aborted && this.error.value === null;
  }

  put(asked: CompareBody, panes: readonly Pane[]): void {
    this.close();
    batch(() => {
      this.panes.value = panes;
      this.asked.value = asked;
    });
  }

  /** Puts another answer in the place of one. What was measured was of the former one, and of the others against a former plain one. */
  replace(name: string, index: number, answer: PaneChoice, asked: CompareBody): void {
    const choices = (pane: Pane) => pane.choices.map((one, at) => (at === index ? answer : one));
    const changed = (pane: Pane) => ({ ...pane, choices: choices(pane), metrics: null, against: null });
    batch(() => {
      this.panes.value = this.panes.value.map((pane) => {
        if (pane.name === name) return changed(pane);
        return name === asked.baseline ? { ...pane, against: null } : pane;
      });
      this.asked.value = asked;
    });
  }

  stop(): void {
    this.abort?.abort();
    this.running.value = false;
  }

  /** Stops the run and clears what is shown. What still arrives of it is not shown. */
  close(): void {
    this.stop();
    this.abort = null;
    batch(() => {
      this.panes.value = [];
      this.asked.value = this.error.value = null;
    });
  }
}

/** Keeps a plain answer that is complete, unless one is kept that was answered in the same way. */
function keepBaseline(key: string, pane: Pane | undefined): void {
  if (!pane || pane.error !== null) return;
  const kept = baselines.get(key);
  if (kept && kept.steering?.fingerprint === pane.steering?.fingerprint) return;
  baselines.delete(key);
  baselines.set(key, pane);
  const [oldest] = baselines.keys();
  if (baselines.size > MAX_BASELINES && oldest !== undefined) baselines.delete(oldest);
}

export type PaneChoice = { text: string; tokens: readonly Token[]; finish: string | null };

/** One arm as it is shown: its answers so far, and how it stands once it has ended. */
export interface Pane {
  name: string;
  choices: readonly PaneChoice[];
  steering: Schemas["AppliedSteering"] | null;
  metrics: Schemas["MetricsAnswer"] | null;
  against: Schemas["AgainstBaselineAnswer"] | null;
  error: string | null;
}

/** What a pane always has, and what each of its other parts has where it is there. */
const PANE = { name: "", choices: [{ text: "", tokens: [{ text: "" }] }] };
const PARTS = {
  error: "",
  steering: { applied: [], warnings: [] },
  metrics: { readout: {}, warnings: [] },
  against: { readout_shift: {}, first_divergence: [], kl_per_token: [] },
};

/** Whether something from a link is a pane with everything that is shown of one. */
export function isPane(one: unknown): one is Pane {
  const parts = one as Record<string, unknown>;
  const known = ([name, part]: [string, unknown]) => parts[name] === null || isLike(parts[name], part);
  return isLike(one, PANE) && Object.entries(PARTS).every(known);
}

const NO_CHOICE: PaneChoice = { text: "", tokens: [], finish: null };

export function emptyPane(name: string, n: number): Pane {
  const choices = Array<PaneChoice>(n).fill(NO_CHOICE);
  return { name, choices, steering: null, metrics: null, against: null, error: null };
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

  take(name: string, data: unknown): void {
    if (name === "token") {
      this.pending.push(data as TokenPiece);
      if ((data as TokenPiece).id != null) this.tokens++;
    } else if (name === "error") {
      const { arm, error } = data as { arm: string; error: { message: string } };
      this.panes = this.panes.map((pane) => (pane.name === arm ? { ...pane, error: error.message } : pane));
    } else if (name === "done") {
      const ended = new Map(
        (data as CompareAnswer).arms.map((arm): [string, Pane] => {
          const { name, steering, metrics = null, against_baseline: against = null, error } = arm;
          const choices = arm.choices.map(({ text, tokens, finish_reason: finish }) => {
            return { text, tokens: (tokens ?? [{ id: null, text }]) as Token[], finish };
          });
          return [name, { name, choices, steering, metrics, against, error: error?.message ?? null }];
        }),
      );
      this.pending = this.pending.filter(({ arm }) => !ended.has(arm ?? ""));
      this.panes = this.panes.map((pane) => ended.get(pane.name) ?? pane);
    }
  }

  /** Applies what has arrived since the last call. */
  current(): Pane[] {
    const grown = group(this.pending, ({ arm }) => arm ?? "");
    this.pending = [];
    this.panes = this.panes.map((pane) => {
      const pieces = grown.get(pane.name);
      if (!pieces) return pane;
      const choices = pane.choices.map((choice, index) => {
        const own = pieces.filter((piece) => piece.choice === index);
        const text = choice.text + own.map((piece) => piece.text).join("");
        return own.length === 0 ? choice : { ...choice, text, tokens: [...choice.tokens, ...own] };
      });
      return { ...pane, choices };
    });
    return this.panes;
  }
}

/** Shows the plain answer that was shown before for the same prompt, seed and sampling: a server may round differently in other company, and
 * the text would differ by more than steering. What was measured against the plain answer of this run is held against that one. */
function withBaseline(panes: readonly Pane[], name: string, kept: Pane | undefined): readonly Pane[] {
  const own = panes.find((pane) => pane.name === name);
  if (!kept || !own || own.error !== null) return panes;
  if (own.steering !== null && own.steering.fingerprint !== kept.steering?.fingerprint) return panes; // the policy has changed
  const [mine, before] = [own, kept].map(({ choices }) => JSON.stringify(choices.map(({ text }) => text)));
  const [former, latter] = mine === before ? [kept, own] : [own, kept]; // of the same text, the vectors of now read best
  const readout = { ...former.metrics?.readout, ...latter.metrics?.readout };
  const shown = { ...kept, name, metrics: kept.metrics && { ...kept.metrics, readout } };
  return panes.map((pane) => (pane === own ? shown : mine === before ? pane : against(pane, kept)));
}

/** Takes the shifts of a pane from another plain answer. */
function against(pane: Pane, plain: Pane): Pane {
  if (!pane.against) return pane;
  const shifts = Object.entries(pane.against.readout_shift).map(([vector, shift]) => {
    const [own, other] = [pane.metrics?.readout[vector]?.mean, plain.metrics?.readout[vector]?.mean];
    if (own == null || other == null || shift?.mean == null) return [vector, shift];
    const moved = own - other - shift.mean;
    const interval = shift.interval?.map((end) => (end === null ? null : end + moved)) ?? null;
    return [vector, { ...shift, mean: own - other, interval }];
  });
  return { ...pane, against: { ...pane.against, readout_shift: Object.fromEntries(shifts) } };
}

type Scores = readonly (number | null)[];
export type Shade = "reading" | "surprise" | "kl" | "difference";

/** Returns the value of a token in a way of shading; null where it was not measured. `scores`: what the answer says, by token. */
export function shadeValue(pane: Pane, choice: number, index: number, shade: Shade, scores: Scores): number | null {
  const token = pane.choices[choice]?.tokens[index];
  if (!token) return null;
  if (shade === "surprise") return token.logprob == null ? null : -token.logprob;
  if (shade === "kl") return pane.against?.kl_per_token[choice]?.[index] ?? null;
  return shade === "reading" ? (scores[index] ?? null) : null;
}

/** For every token of an answer, whether the baseline has other words there. */
export function differences(pane: Pane, base: Pane, choice: number): boolean[] {
  const [own, other] = [pane.choices[choice], base.choices[choice]];
  return own && other ? changedTokens(other.text, own.tokens.map(({ text }) => text)) : []; // biome-ignore format: one line
}
