import "../styles/make.css";
import { useEffect } from "preact/hooks";
import { apiKey } from "../api/client";
import { dismiss, stopTasks } from "../core/jobs";
import { capabilities, mayDo } from "../core/server";
import { card, conceptList, concepts } from "../core/vectors";
import { useActions } from "../frame/dialogs";
import { TaskProgress } from "../frame/JobTray";
import { ChoiceField, of, partsOf, Radio, SearchField, Segments, TextField } from "../ui/fields";
import { Button, ErrorNote, Note, Panel, Warnings } from "../ui/parts";
import { DictionarySource, Features } from "./DictionarySource";
import { AboutDistilling, distil, distilProblem, Instruction } from "./Distil";
import { dictionaries, search, searching } from "./dictionary";
import { PairTable } from "./PairTable";
import { Result } from "./Result";
import * as store from "./store";
import { AboutTransfer, TransferSource } from "./TransferSource";
import { carryOver, transferProblem } from "./transfer";
import { error, name, running, task } from "./work";

const STEPS = ["Examples", "Find", "Look and keep"] as const;

/** What each source shows, what its button says and does, what is missing before it, and what stands where a vector will be. */
const SOURCES = {
  pairs: { Fields: OwnPairs, label: "Find the vector", run: store.extract, problem: store.problem, About: Explanation },
  concept: {
    Fields: ConceptSource,
    label: "Find the vector",
    run: store.extract,
    problem: store.problem,
    About: Explanation,
  },
  instruction: { Fields: Instruction, label: "Distil it", run: distil, problem: distilProblem, About: AboutDistilling },
  dictionary: { Fields: DictionarySource, label: "", run: () => void search(), problem: null, About: Features },
  transfer: {
    Fields: TransferSource,
    label: "Carry it over",
    run: carryOver,
    problem: transferProblem,
    About: AboutTransfer,
  },
} as const;

/** Does what the button of the chosen source does. */
function run(): void {
  if (!running.value) SOURCES[store.source.value].run();
}

function stopAll(): void {
  stopTasks("make");
  searching.stop();
  store.proposing.stop();
}

/** Make: a vector of one's own, from examples, an instruction, a dictionary or another model to a measured card. */
export default function Make() {
  useEffect(() => useActions({ run, stop: stopAll }), []);
  useEffect(() => void dictionaries.load(), [apiKey.value]);
  const step = running.value ? 1 : card.value ? 2 : 0;
  const { About } = SOURCES[store.source.value];
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
        <div class="stack" aria-busy={searching.busy.value || store.proposing.busy.value}>
          <ErrorNote error={error.value ?? searching.error.value} />
          <CurrentTask />
          {card.value ? <Result name={card.value} /> : <About />}
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

function Examples() {
  const [source, options] = [store.source.value, store.sources.value];
  const { Fields } = SOURCES[source];
  return (
    <Panel label="Examples">
      <Segments label="Where the vector comes from" options={options} value={source} onChange={store.chooseSource} />
      <Fields />
      <Warnings of={store.warnings.value} />
      {source !== "dictionary" && <NameAndStart />}
    </Panel>
  );
}

/** One question, "More of what?", and the pairs that answer it: proposed by the model, pasted or typed. */
function OwnPairs() {
  const { sides, proposing } = store;
  const side = partsOf(sides.value, (part) => (sides.value = { ...sides.value, ...part }));
  const busy = proposing.busy.value;
  const disabled = busy || sides.value.positive.trim() === "";
  return (
    <>
      <InWords />
      <div class="what">
        <TextField label="More of what?" placeholder="talk like a pirate" {...side("positive")} />
        <TextField label="And less of it is (may stay empty)" placeholder="talk plainly" {...side("negative")} />
      </div>
      <div class="row">
        <Button
          label={busy ? "Writing pairs" : "Propose pairs"}
          disabled={disabled}
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

/** The concepts that the server knows in words; the one that is chosen fills in both sides. */
function InWords() {
  const label = "Search concepts in words";
  return (
    <>
      <SearchField label={label} placeholder={`${label}: poet, angry, butler`} {...of(store.wanted)} />
      {store.inWords.value.length > 0 && (
        <ul class="row choices" aria-label="Concepts in words">
          {store.inWords.value.map((one) => (
            <li key={one.name}>
              <Button label={one.name} kind="small" title={one.description} onClick={() => store.describe(one)} />
            </li>
          ))}
        </ul>
      )}
    </>
  );
}

function NameAndStart() {
  const { label, problem } = SOURCES[store.source.value];
  const missing = problem?.value ?? null;
  const methods = (capabilities.value?.methods ?? ["mean_difference"]).map(
    (one) => [one, one.replaceAll("_", " ")] as const,
  );
  const given = (text: string) => (name.value = text.trim().toLowerCase());
  const disabled = missing !== null || running.value || !mayDo("write");
  return (
    <>
      <div class="fields">
        <TextField label="Name" placeholder="my-concept" value={name.value} onChange={given} />
        {problem === store.problem && <ChoiceField label="Method" options={methods} {...of(store.method)} />}
      </div>
      <div class="row">
        <Button label={label} kind="primary" disabled={disabled} onClick={run} />
        {missing && <span class="small muted">{missing}</span>}
      </div>
    </>
  );
}

function Explanation() {
  return (
    <Panel label="How it works" title="How a vector is found">
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
    </Panel>
  );
}

/** The concepts that come with the server; their pairs can be edited. */
function ConceptSource() {
  const { concept, adding } = store;
  const edit = () => void store.addConceptPairs();
  return (
    <div class="stack">
      <ErrorNote error={conceptList.error.value} />
      <ul class="stack choices">
        {concepts.value.map(({ name, pairs, description }) => (
          <Radio key={name} group="concept" on={concept.value === name} onChoose={() => store.chooseConcept(name)}>
            <strong>{name}</strong> <span class="small muted">{pairs} pairs</span>
            <br />
            <span class="small">{description}</span>
          </Radio>
        ))}
      </ul>
      <div class="row">
        <Button label="Edit its pairs" disabled={concept.value === "" || adding.value} onClick={edit} />
      </div>
    </div>
  );
}
