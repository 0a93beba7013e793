import { useState } from "preact/hooks";
import { api, dataOf } from "../api/client";
import { Newest } from "../api/newest";
import type { GenerateAnswer, Token } from "../api/types";
import { plain, signed } from "../maths/scales";
import { ErrorNote } from "../ui/Note";
import type { Pane } from "./panes";
import { answerReading } from "./readback";
import { comparison, reader } from "./store";

interface Props {
  pane: Pane;
  choice: number;
  index: number;
  onClose: () => void;
}

type Alternative = { id: number; text: string };

interface Branch {
  start: string;
  text: string;
}

/** One token: its probability, the alternatives, what it reads, and the answer with another word from here. */
export function TokenDetails({ pane, choice, index, onClose }: Props) {
  const [branch, setBranch] = useState<Branch | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const [newest] = useState(() => new Newest());
  const tokens = pane.choices[choice]?.tokens ?? [];
  const token = tokens[index];
  if (!token) return null;
  const kl = pane.against?.kl_per_token[choice]?.[index];
  const take = (alternative: Alternative) => {
    setBranch(null);
    setError(null);
    setBusy(true);
    newest
      .ask(() => branchFrom(pane, tokens.slice(0, index), alternative), setBranch)
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <div class="stack token-details">
      <div class="row between">
        <span>
          <code>{visible(token.text)}</code> {token.logprob != null && `${percent(token.logprob)}`}
          {kl != null && <span class="muted"> · KL {plain(kl, 2)}</span>}
        </span>
        <button type="button" class="quiet" onClick={onClose}>
          Close
        </button>
      </div>
      <Readings pane={pane} choice={choice} index={index} />
      <Alternatives token={token} onTake={take} />
      <ErrorNote error={error} />
      <p class="small muted" role="status">
        {busy && "Writing on from here"}
      </p>
      {branch && (
        <p class="branch" dir="auto">
          <span class="muted">…{branch.start}</span>
          {branch.text}
        </p>
      )}
    </div>
  );
}

function Alternatives({ token, onTake }: { token: Token; onTake: (alternative: Alternative) => void }) {
  if (!token.top_logprobs) return null;
  return (
    <ul class="alternatives" aria-label="Alternatives: continue with another word">
      {token.top_logprobs.map((one) => (
        <li key={one.id}>
          <button type="button" onClick={() => onTake(one)} title="Continue with this word from here">
            <code>{visible(one.text)}</code>
            <meter min={0} max={1} value={Math.exp(one.logprob ?? -99)} aria-label="Probability" />
            <span class="number small">{percent(one.logprob ?? -99)}</span>
          </button>
        </li>
      ))}
    </ul>
  );
}

/** What the text says at a token, and what the stream carried in which it was written. The two are never mixed. */
function Readings({ pane, choice, index }: Pick<Props, "pane" | "choice" | "index">) {
  const name = reader.value;
  const reading = answerReading(comparison.asked.value, name, pane.name, choice)?.scores[index] ?? null;
  const carried = Object.entries(pane.choices[choice]?.tokens[index]?.readout ?? {});
  const added = [...(pane.steering?.applied ?? []), ...(pane.steering?.mandatory ?? [])].length > 0;
  if (reading === null && carried.length === 0) return null;
  return (
    <p class="small">
      {reading !== null && (
        <span class="reading">
          text says about {name} <span class="number">{signed(reading)}</span>{" "}
        </span>
      )}
      {carried.map(([vector, value]) => (
        <span key={vector} class="reading muted">
          {vector} while it was written{added && ", with what steering added"}{" "}
          <span class="number">{signed(value)}</span>{" "}
        </span>
      ))}
    </p>
  );
}

function percent(logprob: number): string {
  const share = 100 * Math.exp(logprob);
  return `${share < 0.1 ? "<0.1" : share.toFixed(1)} %`;
}

function visible(text: string): string {
  return text.replaceAll("\n", "↵").replaceAll(" ", "␣");
}

/** Generates on from the prompt, the tokens before, and another token, with the steering of the same arm. */
async function branchFrom(pane: Pane, before: readonly Token[], next: Alternative): Promise<Branch> {
  const asked = comparison.asked.value;
  const record = pane.steering?.record;
  const arm = asked?.arms.find((one) => one.name === pane.name);
  if (!asked || !record || !arm) throw new Error("Run the comparison to its end first.");
  const ids = before.flatMap((token) => (token.id === null ? [] : [token.id]));
  const answer = await dataOf<GenerateAnswer>(
    api.POST("/v1/generate", {
      body: {
        prompt: [...record.prompt, ...ids, next.id],
        steering: arm.steering as never,
        max_tokens: Math.max(asked.max_tokens - ids.length - 1, 8),
        temperature: asked.temperature,
        top_p: asked.top_p,
        seed: asked.seed,
      },
    }),
  );
  const start = before
    .slice(-8)
    .map((token) => token.text)
    .join("");
  return { start, text: next.text + (answer.choices[0]?.text ?? "") };
}
