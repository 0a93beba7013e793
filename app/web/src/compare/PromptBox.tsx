import { useState } from "preact/hooks";
import { limit } from "../frame/server";
import { NumberField } from "../ui/NumberField";
import { Segments } from "../ui/Segments";
import { change, changeSampling, draft } from "./draft";
import { comparison, draftProblem, instruction, reroll, run, stopAll, sweep } from "./store";

/** The prompt with its buttons, and behind "more" the system prompt, the instruction and the sampling. */
export function PromptBox({ onCode }: { onCode: () => void }) {
  const [more, setMore] = useState(false);
  const { prompt, history, raw } = draft.value;
  const running = comparison.running.value || sweep.running.value;
  const problem = draftProblem.value;
  return (
    <section class="panel stack prompt-box" aria-label="Prompt">
      {history.length > 0 && <History />}
      <textarea
        aria-label="Prompt"
        rows={2}
        dir="auto"
        value={prompt}
        placeholder={raw ? "Text to continue" : "Ask something"}
        onInput={(event) => change({ prompt: event.currentTarget.value })}
      />
      <div class="row">
        {running ? (
          <button type="button" class="primary" onClick={stopAll}>
            Stop
          </button>
        ) : (
          <button type="button" class="primary" disabled={problem !== null} onClick={run}>
            Run
          </button>
        )}
        <button type="button" disabled={problem !== null} onClick={reroll} title="Run with a new seed (R)">
          Re-roll
        </button>
        <button type="button" aria-expanded={more} onClick={() => setMore(!more)}>
          Settings
        </button>
        <button type="button" onClick={onCode}>
          Copy as code
        </button>
        <span class="small muted number speed">
          seed {draft.value.seed}
          {comparison.tokensPerSecond.value !== null && ` · ${Math.round(comparison.tokensPerSecond.value)} tok/s`}
        </span>
        {problem && <span class="small muted">{problem}</span>}
      </div>
      {more && <Settings />}
    </section>
  );
}

function History() {
  const { history } = draft.value;
  return (
    <div class="stack history">
      {history.map((message, index) => (
        <p key={index} dir="auto">
          <strong class="small">{message.role}</strong> {message.content}
        </p>
      ))}
      <button type="button" class="quiet" onClick={() => change({ history: [] })}>
        Start again without earlier turns
      </button>
    </div>
  );
}

function Settings() {
  const { raw, system } = draft.value;
  return (
    <div class="stack">
      <Segments
        label="How the prompt is read"
        value={raw ? "raw" : "chat"}
        options={[
          ["chat", "Chat"],
          ["raw", "Continue the text"],
        ]}
        onChange={(kind) => change({ raw: kind === "raw" })}
      />
      {!raw && (
        <>
          <label class="field">
            <span>System prompt, for all panes</span>
            <textarea
              rows={1}
              dir="auto"
              value={system}
              onInput={(event) => change({ system: event.currentTarget.value })}
            />
          </label>
          <label class="field">
            <span>Instruction of the prompt-only pane (empty: no such pane)</span>
            <textarea
              rows={1}
              dir="auto"
              value={instruction.value}
              onInput={(event) => change({ instruction: event.currentTarget.value })}
            />
          </label>
        </>
      )}
      <SamplingFields />
    </div>
  );
}

function SamplingFields() {
  const { sampling, seed } = draft.value;
  return (
    <div class="row numbers">
      <NumberField
        label="Tokens"
        value={sampling.max_tokens}
        min={1}
        max={2048}
        step={1}
        onChange={(max_tokens) => changeSampling({ max_tokens })}
      />
      <NumberField
        label="Temperature"
        value={sampling.temperature}
        min={0}
        max={limit("max_temperature", 5)}
        step={0.1}
        onChange={(temperature) => changeSampling({ temperature })}
      />
      <NumberField
        label="Top p"
        value={sampling.top_p}
        min={0.01}
        max={1}
        step={0.05}
        onChange={(top_p) => changeSampling({ top_p })}
      />
      <NumberField
        label="Samples"
        value={sampling.n}
        min={1}
        max={limit("max_n", 8)}
        step={1}
        onChange={(n) => changeSampling({ n })}
      />
      <NumberField
        label="Seed"
        value={seed}
        min={0}
        max={999_999_999}
        step={1}
        onChange={(value) => change({ seed: value })}
      />
    </div>
  );
}
