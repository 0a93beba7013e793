import { useState } from "preact/hooks";
import type { AppliedIntervention } from "../api/types";
import { meanOf, plain, signed } from "../maths/scales";
import { Note } from "../ui/Note";
import { continueFrom } from "./conversation";
import { ARMS, type CompareBody } from "./draft";
import type { Pane, PaneChoice } from "./panes";
import { answerReading } from "./readback";
import { comparison, reader, sampleIndex } from "./store";
import { TokenDetails } from "./TokenDetails";
import { TokenText } from "./TokenText";

interface Props {
  pane: Pane;
  base: Pane | undefined;
  title: string;
}

interface Selection {
  /** The run whose token is selected. */
  asked: CompareBody | null;
  index: number;
}

/** One arm: its answer, and below it what the text says and what steering did. */
export function PaneView({ pane, base, title }: Props) {
  const [selection, setSelection] = useState<Selection | null>(null);
  const asked = comparison.asked.value;
  const selected = selection?.asked === asked ? selection.index : null; // another run has other words
  const select = (index: number) => setSelection(index === selected ? null : { asked, index });
  const choice = pane.choices[sampleIndex.value] ?? pane.choices[0];
  const token = selected === null ? undefined : choice?.tokens[selected];
  return (
    <article class="panel pane" data-name={pane.name} aria-label={title}>
      <div class="row between">
        <h2>{title}</h2>
        {choice?.finish === "length" && <span class="badge">cut at the token limit</span>}
      </div>
      <div class="answer">
        {choice && choice.text !== "" ? (
          <TokenText
            pane={pane}
            base={base}
            choice={Math.min(sampleIndex.value, pane.choices.length - 1)}
            selected={selected}
            onSelect={select}
          />
        ) : (
          !pane.error && <p class="muted">{emptyWords(choice)}</p>
        )}
        {pane.error && <Note kind="error">{pane.error}</Note>}
      </div>
      {token && selected !== null && (
        // The key: an alternative that was taken belongs to its own token, also when its answer comes late.
        <TokenDetails
          key={`${sampleIndex.value} ${selected}`}
          pane={pane}
          choice={sampleIndex.value}
          index={selected}
          onClose={() => setSelection(null)}
        />
      )}
      <PaneFacts pane={pane} />
      {choice?.finish && !comparison.running.value && (
        <button type="button" class="quiet small" onClick={() => continueFrom(choice.text)}>
          Continue the conversation from here
        </button>
      )}
    </article>
  );
}

function PaneFacts({ pane }: { pane: Pane }) {
  const name = reader.value;
  const says =
    name === null
      ? null
      : (pane.metrics?.readout[name]?.mean ??
        meanOf(pane.choices.map((_, choice) => answerReading(comparison.asked.value, name, pane.name, choice)?.mean)));
  const shift = name === null ? undefined : pane.against?.readout_shift[name];
  const warnings = [...(pane.steering?.warnings ?? []), ...(pane.metrics?.warnings ?? [])];
  return (
    <dl class="facts small">
      {name && (
        <div title={`What the text says about ${name}, read back by the model without steering`}>
          <dt>text says</dt>
          <dd class="number">
            {signed(says)}
            {shift && ` (Δ ${signed(shift.mean)}${interval(shift.interval)})`}
          </dd>
        </div>
      )}
      <div title="How hard the text is to predict for the unsteered model; lower is more fluent">
        <dt>perplexity</dt>
        <dd class="number">{plain(pane.metrics?.perplexity, 1)}</dd>
      </div>
      <SteeringFacts pane={pane} />
      {warnings.length > 0 && (
        <div class="warnings">
          <dt>warnings</dt>
          {warnings.map((warning) => (
            <dd key={warning}>{warning}</dd>
          ))}
        </div>
      )}
    </dl>
  );
}

/** How far an answer was moved, and by whom. An answer that nothing steers has neither a divergence nor a dose. */
function SteeringFacts({ pane }: { pane: Pane }) {
  const applied = pane.steering?.applied ?? [];
  const policy = pane.steering?.mandatory ?? [];
  const steered = pane.name === ARMS.steered || (policy.length > 0 && pane.against !== null);
  return (
    <>
      {steered && (
        <div title="How far the next-word predictions are from the unsteered model's, in nats per token">
          <dt>KL</dt>
          <dd class="number">{plain(pane.against?.kl_mean, 2)}</dd>
        </div>
      )}
      {applied.length + policy.length > 0 && (
        <div title="The size of the change over the size of the residual stream, of everything that was added">
          <dt>dose</dt>
          <dd class="number">{plain(pane.steering?.relative_dose_total, 2)}</dd>
        </div>
      )}
      {policy.length > 0 && (
        <div title="What the policy of the server adds to every answer, whatever a request says">
          <dt>policy</dt>
          <dd>steers this answer too: {policy.map(policyWords).join(", ")}</dd>
        </div>
      )}
    </>
  );
}

/** What stands for the words of an answer that has none. */
export function emptyWords(choice: PaneChoice | undefined): string {
  if (choice?.finish) return "The answer is empty: the model ended it at once.";
  return comparison.running.value ? "Waiting for the first word" : "Nothing yet";
}

function policyWords({ vector, operation, strength }: AppliedIntervention): string {
  return typeof strength === "number" ? `${vector} ${signed(strength)}` : `${operation} ${vector}`;
}

function interval(value: readonly (number | null)[] | null | undefined): string {
  if (!value || typeof value[0] !== "number" || typeof value[1] !== "number") return "";
  return ` ± ${plain((value[1] - value[0]) / 2, 2)}`;
}
