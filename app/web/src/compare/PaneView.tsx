import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { type AppliedIntervention, api, dataOf, type Schemas, type Token } from "../api/client";
import { Query } from "../core/query";
import { Term } from "../frame/dialogs";
import { meanOf, plain, signed } from "../maths/scales";
import { blankName, visible } from "../maths/text";
import { Button, Each, ErrorNote, lookOf, type Mark, Note, ScoreDial, Table } from "../ui/parts";
import { hints } from "../words.json";
import { type Intervention, shortly } from "./controls";
import { ARMS, type CompareBody, draft, saidIn } from "./draft";
import { answerReading, sentenceOf, shiftWords } from "./readback";
import { differences, type Pane, shadeValue } from "./run";
import * as play from "./store";

interface Props {
  pane: Pane;
  base: Pane | undefined;
  title: string;
  /** What the pane is of: the strengths, or the instruction in words. */
  about?: string;
}

/** One thread: its earlier turns, what its answer is against the plain one in a sentence, the answer, and the numbers behind it. */
export function PaneView({ pane, base, title, about = "" }: Props) {
  const [selection, setSelection] = useState<{ asked: CompareBody | null; index: number } | null>(null);
  const asked = play.comparison.asked.value;
  const selected = play.inspecting.value && selection?.asked === asked ? selection.index : null; // another run has other words
  const select = (index: number) => setSelection(index === selected ? null : { asked, index });
  const sample = play.sampleIndex.value;
  const choice = pane.choices[sample] ?? pane.choices[0];
  const details = { pane, choice: sample };
  const token = selected === null ? undefined : choice?.tokens[selected];
  const running = play.comparison.running.value;
  const said = saidIn(play.askedDraft.value ?? draft.value, pane.name);
  const last = play.askedDraft.value ? [{ role: "user", content: play.askedDraft.value.prompt }] : [];
  const sentence = running ? null : sentenceOf(pane, base, play.reader.value);
  return (
    <article class={`panel pane ${play.stale.value ? "stale" : ""}`} data-name={pane.name} aria-label={title}>
      <div class="row between">
        <h2>{title}</h2>
        {choice?.finish === "length" && <span class="badge">cut at the token limit</span>}
      </div>
      {about !== "" && <p class="small muted about">{about}</p>}
      {said.length > 0 && (
        <ol class="turns" aria-label="Earlier turns">
          {[...said, ...last].map(({ role, content }, index) => (
            <li key={index} class={role} dir="auto">
              {content}
            </li>
          ))}
        </ol>
      )}
      {sentence && <p class="sentence">{sentence}</p>}
      <div class="answer">
        {choice && choice.text !== "" ? (
          <TokenText {...{ pane, base, selected }} choice={pane.choices.indexOf(choice)} onSelect={select} />
        ) : (
          !pane.error && (
            <p class="muted">
              {choice?.finish ? hints.emptyAnswer : running ? "Waiting for the first word" : "Nothing yet"}
            </p>
          )
        )}
        {pane.error && <Note kind="error">{pane.error}</Note>}
      </div>
      {token && selected !== null && (
        // The key: an alternative that was taken belongs to its own token, also when its answer comes late.
        <TokenDetails key={`${sample} ${selected}`} {...details} index={selected} onClose={() => setSelection(null)} />
      )}
      <PaneFacts pane={pane} />
    </article>
  );
}

/** Says what a pane was asked with: its strengths, or what the model was told. */
export function aboutPane(name: string, body: CompareBody): string {
  const arm = body.arms.find((one) => one.name === name);
  if (name === ARMS.steered) return (arm?.steering as Intervention[] | undefined)?.map(shortly).join(", ") ?? "";
  if (name !== ARMS.prompted || !arm?.system) return "";
  const system = play.askedDraft.value?.system.trim() ?? "";
  return `Told: “${arm.system.slice(system === "" ? 0 : system.length + 1)}”`;
}

/** The numbers behind an answer: its title says what each is. An answer that nothing steers has neither a divergence nor a dose. */
function PaneFacts({ pane: { name: arm, choices, metrics, against, steering } }: { pane: Pane }) {
  const name = play.reader.value;
  const read = choices.map((_, choice) => answerReading(play.comparison.asked.value, name, arm, choice)?.mean);
  const says = name === null ? null : (metrics?.readout[name]?.mean ?? meanOf(read));
  const shift = name === null ? undefined : against?.readout_shift[name];
  const { applied = [] } = steering ?? {};
  const policy = steering?.mandatory ?? [];
  const warnings = [...(steering?.warnings ?? []), ...(metrics?.warnings ?? [])];
  const steered = arm === ARMS.steered || (policy.length > 0 && against !== null);
  if (choices.every(({ text }) => text === "") && steering === null) return null;
  return (
    <details class="more" open={warnings.length + policy.length > 0}>
      <summary>Numbers</summary>
      <dl class="facts small">
        {name && (
          <Fact label="text says" title={`What the text says about ${name}, read back by the model without steering`}>
            {signed(says)}
            {shift && ` (Δ ${shiftWords(shift)})`}
          </Fact>
        )}
        <Fact label="perplexity">{plain(metrics?.perplexity, 1)}</Fact>
        {steered && <Fact label="KL">{plain(against?.kl_mean, 2)}</Fact>}
        {applied.length + policy.length > 0 && <Fact label="dose">{plain(steering?.relative_dose_total, 2)}</Fact>}
        {policy.length > 0 && (
          <div title="What the policy of the server adds to every answer, whatever a request says">
            <dt>policy</dt>
            <dd>steers this answer too: {policy.map(policyWords).join(", ")}</dd>
          </div>
        )}
        {warnings.length > 0 && (
          <div class="warnings">
            <dt>warnings</dt>
            <Each of={warnings} row={(warning) => <dd key={warning}>{warning}</dd>} />
          </div>
        )}
      </dl>
    </details>
  );
}

/** A number with its name, which the glossary explains where the page does not. */
const Fact = ({ label, title, children }: { label: string; title?: string; children: ComponentChildren }) => (
  <div {...(title ? { title } : {})}>
    <dt>{title ? label : <Term name={label} />}</dt>
    <dd class="number">{children}</dd>
  </div>
);

const policyWords = ({ vector, operation, strength }: AppliedIntervention): string =>
  operation === "add" ? `${vector} ${signed(strength)}` : `${operation} ${vector}`;

interface WordsProps {
  pane: Pane;
  base: Pane | undefined;
  choice: number;
  selected: number | null;
  onSelect: (index: number) => void;
}

const FULL_SURPRISE = 6;
const FULL_KL = 2;

/** The answer as text with coloured words. While words are inspected, each token is a button; a click on a word begins that. */
export function TokenText({ pane, base, choice, selected, onSelect }: WordsProps) {
  const tokens = pane.choices[choice]?.tokens ?? [];
  const marks = marksOf(pane, base, choice);
  const buttons = play.inspecting.value;
  const reached = selected !== null && selected < tokens.length ? selected : 0; // another sample may be shorter
  const pick = (event: Event) => {
    const index = (event.target as HTMLElement).dataset.index;
    if (index === undefined) return;
    play.inspecting.value = true;
    onSelect(Number(index));
  };
  const buttonAt = (index: number, text: string) => ({
    role: "button" as const,
    tabIndex: index === reached ? 0 : -1,
    ...(text.trim() === "" ? { "aria-label": blankName(text) } : {}),
    "aria-pressed": index === selected,
  });
  return (
    <p class="tokens" dir="auto" onClick={pick} onKeyDown={(event) => buttons && moved(event, onSelect)}>
      {tokens.map(({ text }, index) => (
        <span key={index} data-index={index} {...lookOf(marks[index] ?? {})} {...(buttons && buttonAt(index, text))}>
          {text}
        </span>
      ))}
    </p>
  );
}

function marksOf(pane: Pane, base: Pane | undefined, choice: number): Mark[] {
  const kind = play.shownShade.value;
  const tokens = pane.choices[choice]?.tokens ?? [];
  const other = kind === "difference" && base && base !== pane && !play.comparison.running.value;
  if (kind === "difference") return other ? differences(pane, base, choice).map((changed) => ({ changed })) : [];
  const scores = answerReading(play.comparison.asked.value, play.reader.value, pane.name, choice)?.scores ?? [];
  return tokens.map((_, index) => {
    const value = shadeValue(pane, choice, index, kind, scores);
    if (kind === "reading") return { score: value, full: play.fullReading.value };
    return { amount: value, full: kind === "kl" ? FULL_KL : FULL_SURPRISE };
  });
}

function moved(event: KeyboardEvent, onSelect: (index: number) => void): void {
  const element = event.target as HTMLElement;
  const index = element.dataset.index;
  if (index === undefined || event.ctrlKey || event.metaKey) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    onSelect(Number(index));
  }
  const next = event.key === "ArrowRight" ? element.nextElementSibling : element.previousElementSibling;
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") (next as HTMLElement | null)?.focus();
}

type DetailsProps = { pane: Pane; choice: number; index: number; onClose: () => void };

type Alternative = { id: number; text: string; logprob?: number | null };

/** One token: its probability, the alternatives, what it reads, and the answer with another word from here. */
export function TokenDetails({ pane, choice, index, onClose }: DetailsProps) {
  const [branch] = useState(() => new Query(branchFrom));
  const tokens = pane.choices[choice]?.tokens ?? [];
  const token = tokens[index];
  if (!token) return null;
  const kl = pane.against?.kl_per_token[choice]?.[index];
  const problem = branchProblem(pane);
  const found = branch.busy.value ? null : branch.data.value;
  // What the text says at the token, and what the stream carried in which it was written. The two are never mixed.
  const name = play.reader.value;
  const reading = answerReading(play.comparison.asked.value, name, pane.name, choice)?.scores[index] ?? null;
  const carried = token.readout ?? {};
  const added = [...(pane.steering?.applied ?? []), ...(pane.steering?.mandatory ?? [])].length > 0;
  const names = [...new Set([...(name !== null && reading !== null ? [name] : []), ...Object.keys(carried)])];
  const head = ["", "text says", `while it was written${added ? ", with what steering added" : ""}`];
  const dial = (score: number | null | undefined) => <ScoreDial score={score} full={play.fullReading.value} />;
  const rows = names.map((vector) => [vector, vector === name ? dial(reading) : "–", dial(carried[vector])]);
  return (
    <div class="stack token-details">
      <div class="row between">
        <span>
          <code>{visible(token.text)}</code> {token.logprob != null && `${percent(token.logprob)}`}
          {kl != null && <span class="muted"> · KL {plain(kl, 2)}</span>}
        </span>
        <Button label="Close" kind="quiet" onClick={onClose} />
      </div>
      {names.length > 0 && <Table label="Readings of this word" kind="small readings" head={head} rows={rows} />}
      {token.top_logprobs && (
        <ul class="alternatives" aria-label="Alternatives: continue with another word">
          {token.top_logprobs.map((one) => (
            <li key={one.id}>
              <button
                type="button"
                disabled={problem !== null}
                onClick={() => void branch.ask(pane, tokens.slice(0, index + 1), one)}
                title="Continue with this word from here"
              >
                <code>{visible(one.text)}</code>
                <span class="share" aria-hidden="true">
                  <span style={{ width: `${100 * Math.exp(one.logprob ?? -99)}%` }} />
                </span>
                <span class="number small">{percent(one.logprob ?? -99)}</span>
              </button>
            </li>
          ))}
        </ul>
      )}
      {token.top_logprobs && problem && <p class="small muted">{problem}</p>}
      <ErrorNote error={branch.error.value} />
      <p class="small muted" role="status">
        {branch.busy.value && "Writing on from here"}
      </p>
      {found && (
        <>
          <p class="branch" dir="auto">
            <span class="muted">…{found.start}</span>
            {found.text}
          </p>
          <Button label="Use this answer" onClick={() => play.takeAnswer(pane.name, choice, found.answer)} />
        </>
      )}
    </div>
  );
}

function percent(logprob: number): string {
  const share = 100 * Math.exp(logprob);
  return `${share < 0.1 ? "<0.1" : share.toFixed(1)} %`;
}

/** Why an answer cannot go on from another word: what stands before is part of the prompt then, and would be steered otherwise. */
export function branchProblem({ steering }: Pane): string | null {
  const { applied = [], mandatory } = steering ?? {};
  const other = [...applied, ...(mandatory ?? [])].find((one) => {
    const { tokens = "all", roles, phase } = one.scope ?? {};
    const apart = phase?.some((name) => name !== "answer" || !applied.includes(one));
    const early = JSON.stringify(one.when ?? "").includes('"at":"prompt'); // or its mean
    return tokens !== "all" || roles || apart || one.schedule || early;
  });
  return other ? `${hints.noBranch} ${other.vector}.` : null;
}

/** Generates on from the prompt, the tokens up to the one whose place another takes, and that one, with the steering of the same arm. Returns
 * the end of what stands before, what follows, and the whole answer. */
async function branchFrom(signal: AbortSignal, pane: Pane, until: readonly Token[], next: Alternative) {
  const asked = play.comparison.asked.value;
  const record = pane.steering?.record;
  const arm = asked?.arms.find((one) => one.name === pane.name);
  if (!asked || !record || !arm) throw new Error("Run the comparison to its end first.");
  const before = until.slice(0, -1);
  const ids = before.flatMap((token) => (token.id === null ? [] : [token.id]));
  const { max_tokens: most, temperature, top_p, seed, logprobs } = asked;
  const prompt = [...record.prompt, ...ids, next.id];
  const max_tokens = Math.max(most - ids.length - 1, 8);
  const answered = until.findIndex(({ phase }) => phase === "answer");
  const steering = (arm.steering as Intervention[]).flatMap((one, at) => {
    const scope = pane.steering?.applied[at]?.scope;
    if (!scope?.phase) return [one];
    const words = { ...scope, phase: null, tokens: "prompt", start: record.prompt.length + answered };
    const later = { ...one, scope: { ...scope, tokens: "generated" } };
    return answered < 0 ? [later] : [{ ...one, scope: words }, later]; // of a model that thinks, the answer alone is steered
  });
  const body = { prompt, steering: steering as never, max_tokens, temperature, top_p, seed, logprobs };
  const made = (await dataOf<Schemas["GenerateAnswer"]>(api.POST("/v1/generate", { body, signal }))).choices[0];
  const textOf = (list: readonly { text: string }[]) => list.map(({ text }) => text).join("");
  const rest = (made?.tokens ?? [{ id: null, text: made?.text ?? "" }]) as Token[];
  const text = next.text + (made?.text ?? "");
  const tokens = [...before, { ...next, logprob: next.logprob ?? null }, ...rest];
  const answer = { text: textOf(before) + text, tokens, finish: made?.finish_reason ?? null };
  return { start: textOf(before.slice(-8)), text, answer };
}
