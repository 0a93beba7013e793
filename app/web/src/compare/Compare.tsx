import "../styles/compare.css";
import { useLayoutEffect, useState } from "preact/hooks";
import { offer } from "../api/client";
import { limit, polesAwaited } from "../core/server";
import { Term, useActions } from "../frame/dialogs";
import { LinkProblem } from "../frame/ShareLink";
import { NumberField, partsOf, Segments, TextArea, TextBox } from "../ui/fields";
import { Button, ErrorNote, focusing } from "../ui/parts";
import { promptKinds } from "../words.json";
import { CodeDialog } from "./CodeDialog";
import { ARMS, change, draft, followAddress, linkedResults } from "./draft";
import { onLanding } from "./gallery";
import { FirstStart, Landing, wantsStarters } from "./Landing";
import { Panes } from "./Panes";
import { aboutPane } from "./PaneView";
import { SteeringPanel } from "./SteeringPanel";
import * as play from "./store";

/** Play: saved answers at first; then one conversation, plain and steered next to each other. */
export default function Compare() {
  const [codeShown, setCodeShown] = useState(false);
  // Before the place is painted, so that the address does not undo what a person does as soon as it is seen.
  useLayoutEffect(followAddress, []);
  useLayoutEffect(() => useActions({ run: play.run, stop: play.stopAll, reroll: play.reroll }), []);
  useLayoutEffect(() => {
    if (linkedResults.value === null || polesAwaited.value) return;
    play.showResults(linkedResults.value.results, linkedResults.value.of);
    linkedResults.value = null;
  }, [linkedResults.value, polesAwaited.value]);
  return (
    <>
      <LinkProblem />
      {onLanding.value ? (
        <Landing />
      ) : (
        <div class="compare">
          <SteeringPanel />
          <div class="stack results">
            {wantsStarters() && <FirstStart />}
            <ErrorNote error={play.comparison.error.value} />
            <Panes />
            <RunStrip />
          </div>
        </div>
      )}
      <PromptBox onCode={() => setCodeShown(true)} />
      {codeShown && <CodeDialog onClose={() => setCodeShown(false)} />}
    </>
  );
}

/** The runs before: a click shows one again with everything that was set, a pin keeps it. */
function RunStrip() {
  const before = play.runBefore.value;
  const undo = () => before && play.restoreRun(before);
  if (play.runs.value.length < 2) return null;
  return (
    <section class="runs" aria-label="Runs">
      <Button label="Undo" kind="quiet" disabled={before === null} title="Back to the run before" onClick={undo} />
      <ol>
        {play.runs.value.map((run) => (
          <li key={run.id} class={run.pinned ? "pinned" : ""}>
            <Button kind="run" pressed={run.id === play.shownRun.value} onClick={() => play.restoreRun(run)}>
              <strong>{aboutPane(ARMS.steered, run.asked) || "plain"}</strong>
              <span>
                {(run.panes.find(({ name }) => name === ARMS.steered) ?? run.panes[0])?.choices[0]?.text.slice(0, 60)}
              </span>
            </Button>
            <Button kind="quiet pin" hidden={`Pin run ${run.id}`} pressed={run.pinned} onClick={() => play.pin(run.id)}>
              <span aria-hidden="true">{run.pinned ? "★" : "☆"}</span>
            </Button>
          </li>
        ))}
      </ol>
    </section>
  );
}

/** Does something on a single click only: the second click of a double click may hit another button that has moved under it. */
const once = (work: () => void) => (event: MouseEvent) => {
  if (event.detail < 2) work();
};

/** The prompt with its buttons, and behind "more" the system prompt, the instruction and the sampling. */
function PromptBox({ onCode }: { onCode: () => void }) {
  const [more, setMore] = useState(false);
  const { history, turns, raw, seed } = draft.value;
  const field = partsOf(draft.value, change);
  const running = play.comparison.running.value || play.sweep.running.value;
  const save = () => offer(new Blob([play.answerTable()], { type: "text/csv" }), "answers.csv");
  const [problem, speed] = [play.draftProblem.value, play.comparison.tokensPerSecond.value];
  const disabled = problem !== null;
  const empty = raw ? "Text to continue" : "Ask something";
  const anew = focusing("#prompt", () => change({ history: [], turns: [] }));
  return (
    <section class="panel stack prompt-box" aria-label="Prompt">
      <TextBox id="prompt" label="Prompt" placeholder={empty} {...field("prompt")} />
      <div class="row">
        <Button label="Run" kind="primary" disabled={disabled} onClick={once(play.run)} />
        {/* Beside Run, not in its place: a click on Run also releases a dial, which runs already. */}
        {running && <Button label="Stop" onClick={play.stopAll} />}
        <Button label="Re-roll" disabled={disabled} onClick={once(play.reroll)} title="Run with a new seed (R)" />
        <button type="button" aria-expanded={more} onClick={() => setMore(!more)}>
          Settings
        </button>
        <Button label="Copy as code" onClick={onCode} />
        {play.comparison.panes.value.length > 0 && (
          <Button label="CSV" hidden=": the answers as a table" kind="quiet" onClick={save} />
        )}
        {history.length + turns.length > 0 && <Button label="New conversation" kind="quiet" onClick={anew} />}
        <span class="small muted number speed">
          <Term name="seed" />
          {` ${seed}${speed === null ? "" : ` · ${Math.round(speed)} tok/s`}`}
        </span>
        {problem && <span class="small muted">{problem}</span>}
      </div>
      {more && <Settings />}
    </section>
  );
}

function Settings() {
  const { raw, sampling } = draft.value;
  const field = partsOf(draft.value, change);
  const number = partsOf(sampling, (part) => change({ sampling: { ...sampling, ...part } }));
  const read = (kind: keyof typeof promptKinds) => change({ raw: kind === "raw" });
  const heat = { min: 0, max: limit("max_temperature", 5), step: 0.1 };
  const told = { value: play.instruction.value, onChange: (text: string) => change({ instruction: text }) };
  return (
    <div class="stack">
      <Segments label="How the prompt is read" options={promptKinds} value={raw ? "raw" : "chat"} onChange={read} />
      {!raw && <TextArea label="System prompt, for all panes" rows={1} {...field("system")} />}
      {!raw && <TextArea label="Instruction of the prompt-only pane (empty: no such pane)" rows={1} {...told} />}
      <div class="row numbers">
        <NumberField label="Tokens" min={1} max={2048} step={1} {...number("max_tokens")} />
        <NumberField label="Temperature" {...heat} {...number("temperature")} />
        <NumberField label="Top p" min={0.01} max={1} step={0.05} {...number("top_p")} />
        <NumberField label="Samples" min={1} max={limit("max_n", 8)} step={1} {...number("n")} />
        <NumberField label="Seed" min={0} max={999_999_999} step={1} {...field("seed")} />
      </div>
    </div>
  );
}
