import "../styles/make.css";
import { useEffect } from "preact/hooks";
import { apiKey } from "../api/retry";
import { conceptList, concepts } from "../core/concepts";
import { dismiss, stopTasks } from "../core/jobs";
import { capabilities, hasRoute, mayDo } from "../core/server";
import { card } from "../core/vectors";
import { useActions } from "../frame/dialogs";
import { TaskProgress } from "../frame/JobTray";
import { Button } from "../ui/Button";
import { ChoiceField, of, partsOf, Segments, TextField } from "../ui/fields";
import { ErrorNote, Note } from "../ui/Note";
import { DictionarySource, Features } from "./DictionarySource";
import { dictionaries, search, searching } from "./dictionary";
import { PairTable } from "./PairTable";
import { proposing } from "./proposals";
import { Result } from "./Result";
import {
  addConceptPairs,
  adding,
  chooseConcept,
  chooseSource,
  concept,
  extract,
  method,
  problem,
  sides,
  source,
  sources,
  warnings,
} from "./store";
import { AboutTransfer, TransferSource } from "./TransferSource";
import { carryOver, transferProblem } from "./transfer";
import { error, name, running, task } from "./work";

const STEPS = ["Examples", "Find", "Look and keep"] as const;

/** Does what the button of the chosen source does. */
function run(): void {
  if (running.value) return;
  if (source.value === "dictionary") void search();
  else if (source.value === "transfer") carryOver();
  else extract();
}

function stopAll(): void {
  stopTasks("make");
  searching.stop();
  proposing.stop();
}

/** Make: a vector of one's own, from examples, a dictionary or another model to a measured card. */
export default function Make() {
  useEffect(() => useActions({ run, stop: stopAll }), []);
  const listed = hasRoute("GET", "/v1/dictionaries");
  useEffect(() => void (listed && dictionaries.load()), [apiKey.value, listed]);
  const step = running.value ? 1 : card.value ? 2 : 0;
  return (
    <>
      {!mayDo("write") && (
        <Note kind="notice">
          The key of this tab may not make vectors: it lacks the scope write. Another key can be given at the top right.
        </Note>
      )}
      <ol class="steps row" aria-label="Steps">
        {STEPS.map((title, index) => (
          <li key={title} {...(index === step ? { "aria-current": "step" as const } : {})}>
            <span class="number">{index + 1}</span> {title}
          </li>
        ))}
      </ol>
      <div class="make">
        <Examples />
        <div class="stack" aria-busy={searching.busy.value || proposing.busy.value}>
          <ErrorNote error={error.value ?? searching.error.value} />
          <CurrentTask />
          {card.value ? <Result name={card.value} /> : <Beginning />}
        </div>
      </div>
    </>
  );
}

/** The job of Make that runs, or why the one before failed. */
function CurrentTask() {
  const now = task.value;
  if (now === null) return null;
  if (!now.ended.value) return <TaskProgress task={now} />;
  if (now.error.value === null) return null;
  return (
    <div class="row">
      <ErrorNote error={now.error.value} />
      <Button label="Close" kind="quiet" onClick={() => dismiss(now)} />
    </div>
  );
}

/** What stands where a vector will be: what a search found, or how it will be made. */
function Beginning() {
  if (source.value === "dictionary") return <Features />;
  return source.value === "transfer" ? <AboutTransfer /> : <Explanation />;
}

function Examples() {
  return (
    <section class="panel stack" aria-label="Examples">
      <Segments
        label="Where the vector comes from"
        options={sources.value}
        value={source.value}
        onChange={chooseSource}
      />
      {source.value === "pairs" && <OwnPairs />}
      {source.value === "concept" && <ConceptSource />}
      {source.value === "dictionary" && <DictionarySource />}
      {source.value === "transfer" && <TransferSource />}
      {warnings.value.map((warning) => (
        <Note key={warning} kind="notice">
          {warning}
        </Note>
      ))}
      {source.value !== "dictionary" && <NameAndStart />}
    </section>
  );
}

/** One question, "More of what?", and the pairs that answer it: proposed by the model, pasted or typed. */
function OwnPairs() {
  const side = partsOf(sides.value, (part) => (sides.value = { ...sides.value, ...part }));
  const busy = proposing.busy.value;
  return (
    <>
      <div class="what">
        <TextField label="More of what?" placeholder="talk like a pirate" {...side("positive")} />
        <TextField label="And less of it is (may stay empty)" placeholder="talk plainly" {...side("negative")} />
      </div>
      <div class="row">
        <Button
          label={busy ? "Writing pairs" : "Propose pairs"}
          disabled={busy || sides.value.positive.trim() === ""}
          onClick={() => void proposing.ask()}
        />
        {busy && <Button label="Stop" kind="quiet" onClick={() => proposing.stop()} />}
        <span class="small muted">The model answers questions in both ways. Read them, and mend what is wrong.</span>
      </div>
      <ErrorNote error={proposing.error.value} />
      <PairTable />
    </>
  );
}

function NameAndStart() {
  const carried = source.value === "transfer";
  const missing = carried ? transferProblem.value : problem.value;
  const methods = capabilities.value?.methods ?? ["mean_difference"];
  const given = (text: string) => (name.value = text.trim().toLowerCase());
  return (
    <>
      <div class="fields">
        <TextField label="Name" placeholder="my-concept" value={name.value} onChange={given} />
        {!carried && (
          <ChoiceField
            label="Method"
            options={methods.map((one) => [one, one.replaceAll("_", " ")] as const)}
            {...of(method)}
          />
        )}
      </div>
      <div class="row">
        <Button
          label={carried ? "Carry it over" : "Find the vector"}
          kind="primary"
          disabled={missing !== null || running.value || !mayDo("write")}
          onClick={run}
        />
        {missing && <span class="small muted">{missing}</span>}
      </div>
    </>
  );
}

function Explanation() {
  return (
    <section class="panel stack" aria-label="How it works">
      <h2>How a vector is found</h2>
      <p>
        Say in words what there should be more of, and the model proposes pairs of answers that differ in that only; or
        write, paste or open pairs of your own. The model reads both sides. Where their activations differ on average,
        layer by layer, is the direction of the concept.
      </p>
      <p>
        Some pairs are set aside and the vector is tested on them, against random directions. The card shows at which
        layers it tells the two sides apart, and which layer to steer at.
      </p>
      <p class="muted">Twenty pairs are a good start. More topics are better than more pairs on one topic.</p>
    </section>
  );
}

/** The concepts that come with the server; their pairs can be edited. */
function ConceptSource() {
  return (
    <div class="stack">
      <ErrorNote error={conceptList.error.value} />
      <ul class="stack choices">
        {concepts.value.map((one) => (
          <li key={one.name}>
            <label class="row choice">
              <input
                type="radio"
                name="concept"
                checked={concept.value === one.name}
                onChange={() => chooseConcept(one.name)}
              />
              <span>
                <strong>{one.name}</strong> <span class="small muted">{one.pairs} pairs</span>
                <br />
                <span class="small">{one.description}</span>
              </span>
            </label>
          </li>
        ))}
      </ul>
      <div class="row">
        <Button
          label="Edit its pairs"
          disabled={concept.value === "" || adding.value}
          onClick={() => void addConceptPairs()}
        />
      </div>
    </div>
  );
}
