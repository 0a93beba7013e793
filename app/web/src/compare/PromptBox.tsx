import { useState } from "preact/hooks";
import { limit } from "../core/server";
import { Button } from "../ui/Button";
import { NumberField, partsOf, Segments, TextArea, typed } from "../ui/fields";
import { focusNext } from "../ui/focus";
import { change, changeSampling, draft } from "./draft";
import { comparison, draftProblem, instruction, reroll, run, stopAll, sweep } from "./store";

/** Does something on a single click only: the second click of a double click may hit another button that has moved under it. */
function once(work: () => void) {
  return (event: MouseEvent) => {
    if (event.detail < 2) work();
  };
}

/** The prompt with its buttons, and behind "more" the system prompt, the instruction and the sampling. */
export function PromptBox({ onCode }: { onCode: () => void }) {
  const [more, setMore] = useState(false);
  const { prompt, history, turns, raw } = draft.value;
  const running = comparison.running.value || sweep.running.value;
  const problem = draftProblem.value;
  return (
    <section class="panel stack prompt-box" aria-label="Prompt">
      <textarea
        id="prompt"
        aria-label="Prompt"
        rows={2}
        dir="auto"
        value={prompt}
        placeholder={raw ? "Text to continue" : "Ask something"}
        {...typed((text) => change({ prompt: text }))}
      />
      <div class="row">
        <Button label="Run" kind="primary" disabled={problem !== null} onClick={once(run)} />
        {/* Beside Run, not in its place: a click on Run also releases a dial, which runs already. */}
        {running && <Button label="Stop" onClick={stopAll} />}
        <Button label="Re-roll" disabled={problem !== null} onClick={once(reroll)} title="Run with a new seed (R)" />
        <button type="button" aria-expanded={more} onClick={() => setMore(!more)}>
          Settings
        </button>
        <Button label="Copy as code" onClick={onCode} />
        {history.length + turns.length > 0 && (
          <Button
            label="New conversation"
            kind="quiet"
            onClick={() => {
              change({ history: [], turns: [] });
              focusNext("#prompt");
            }}
          />
        )}
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

const KINDS = { chat: "Chat", raw: "Continue the text" } as const;

function Settings() {
  const { raw, sampling } = draft.value;
  const field = partsOf(draft.value, change);
  const number = partsOf(sampling, changeSampling);
  return (
    <div class="stack">
      <Segments
        label="How the prompt is read"
        options={KINDS}
        value={raw ? "raw" : "chat"}
        onChange={(kind) => change({ raw: kind === "raw" })}
      />
      {!raw && (
        <>
          <TextArea label="System prompt, for all panes" rows={1} {...field("system")} />
          <TextArea
            label="Instruction of the prompt-only pane (empty: no such pane)"
            rows={1}
            value={instruction.value}
            onChange={(text) => change({ instruction: text })}
          />
        </>
      )}
      <div class="row numbers">
        <NumberField label="Tokens" min={1} max={2048} step={1} {...number("max_tokens")} />
        <NumberField
          label="Temperature"
          min={0}
          max={limit("max_temperature", 5)}
          step={0.1}
          {...number("temperature")}
        />
        <NumberField label="Top p" min={0.01} max={1} step={0.05} {...number("top_p")} />
        <NumberField label="Samples" min={1} max={limit("max_n", 8)} step={1} {...number("n")} />
        <NumberField label="Seed" min={0} max={999_999_999} step={1} {...field("seed")} />
      </div>
    </div>
  );
}
