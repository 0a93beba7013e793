import "../styles/make.css";
import { computed } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { apiKey } from "../api/client";
import { beginJob, dismiss, stopTasks } from "../core/jobs";
import { capabilities, card, conceptList, concepts, mayDo } from "../core/server";
import { remembered } from "../core/state";
import { useActions } from "../frame/dialogs";
import { TaskProgress } from "../frame/JobTray";
import { ChoiceField, of, partsIn, Radio, SearchField, Segments, TextArea, TextField } from "../ui/fields";
import { About, Ask, Button, ErrorNote, List, Note, Panel, Warnings } from "../ui/parts";
import { about, hints, steps } from "../words.json";
import { DictionarySource, dictionaries, Features, search, searching } from "./Dictionary";
import { PairTable } from "./PairTable";
import { Result } from "./Result";
import * as store from "./store";
import { carryOver, TransferSource, transferProblem } from "./Transfer";
import { error, name, nameProblem, running, task } from "./work";

const instruction = remembered("instruction", "");

/** What is still missing before an instruction can be distilled; null when nothing is. */
const distilProblem = computed<string | null>(
  () => nameProblem(name.value) ?? (instruction.value.trim() === "" ? "Write the instruction." : null),
);

/** Makes a vector of what an instruction changes in the model's own answers. */
function distil(): void {
  if (distilProblem.value !== null) return;
  const text = instruction.value.trim();
  const body = { name: name.value, instruction: text, description: text };
  beginJob({ place: "make", kind: "distil", vector: body.name }, "/v1/vectors/distil", body);
}

const EXAMPLES = { label: "Find the vector", run: store.extract, problem: store.problem };

/** What each source shows, what its button says and does, and what is missing before it. */
const SOURCES = {
  pairs: { Fields: OwnPairs, ...EXAMPLES },
  concept: { Fields: ConceptSource, ...EXAMPLES },
  instruction: { Fields: Instruction, label: "Distil it", run: distil, problem: distilProblem },
  dictionary: { Fields: DictionarySource, label: "", run: search, problem: null },
  transfer: { Fields: TransferSource, label: "Carry it over", run: carryOver, problem: transferProblem },
} as const;

function run(): void {
  if (!running.value) void SOURCES[store.source.value].run();
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
  const [now, source] = [task.value, store.source.value];
  const failure = (now?.ended.value && now.error.value) || null; // of the job before, until it is closed
  const step = running.value ? 1 : card.value ? 2 : 0;
  return (
    <>
      {!mayDo("write") && <Note kind="notice">{hints.noWrite}</Note>}
      <ol class="steps row" aria-label="Steps">
        {steps.map((title, index) => (
          <li key={title} {...(index === step ? { "aria-current": "step" as const } : {})}>
            <span class="number">{index + 1}</span> {title}
          </li>
        ))}
      </ol>
      <div class="make">
        <Examples />
        <div class="stack" aria-busy={searching.busy.value || store.proposing.busy.value}>
          <ErrorNote error={error.value ?? searching.error.value} />
          {now && !now.ended.value && <TaskProgress task={now} />}
          {failure !== null && (
            <div class="row">
              <ErrorNote error={failure} />
              <Button label="Close" kind="quiet" onClick={() => now && dismiss(now)} />
            </div>
          )}
          {card.value ? (
            <Result name={card.value} />
          ) : source === "dictionary" ? (
            <Features />
          ) : (
            <About {...about[source === "concept" ? "pairs" : source]} />
          )}
        </div>
      </div>
    </>
  );
}

function Examples() {
  const [source, options] = [store.source.value, store.sources.value];
  const { Fields, label, problem } = SOURCES[source];
  const missing = problem?.value ?? null;
  const known = capabilities.value?.methods ?? ["mean_difference"];
  const methods = known.map((one) => [one, one.replaceAll("_", " ")] as const);
  const given = (text: string) => (name.value = text.trim().toLowerCase());
  const disabled = missing !== null || running.value || !mayDo("write");
  return (
    <Panel label="Examples">
      <Segments label="Where the vector comes from" options={options} value={source} onChange={store.chooseSource} />
      <Fields />
      <Warnings of={store.warnings.value} />
      {source !== "dictionary" && (
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
      )}
    </Panel>
  );
}

/** One question, "More of what?", and the pairs that answer it: proposed by the model, pasted or typed. */
function OwnPairs() {
  const { sides, proposing } = store;
  const side = partsIn(sides);
  const words = { label: "Propose pairs", waiting: "Writing pairs", disabled: sides.value.positive.trim() === "" };
  return (
    <>
      <SearchField label={IN_WORDS} placeholder={`${IN_WORDS}: poet, angry, butler`} {...of(store.wanted)} />
      {store.inWords.value.length > 0 && (
        <ul class="row choices" aria-label="Concepts in words">
          {store.inWords.value.map((one) => (
            <li key={one.name}>
              <Button label={one.name} kind="small" title={one.description} onClick={() => store.describe(one)} />
            </li>
          ))}
        </ul>
      )}
      <div class="what">
        <TextField label="More of what?" placeholder="talk like a pirate" {...side("positive")} />
        <TextField label="And less of it is (may stay empty)" placeholder="talk plainly" {...side("negative")} />
      </div>
      <div class="row">
        <Ask query={proposing} {...words} onAsk={() => proposing.ask()} />
        <span class="small muted">{hints.propose}</span>
      </div>
      <ErrorNote error={proposing.error.value} />
      <PairTable />
    </>
  );
}

/** The concepts that the server knows in words; the one that is chosen fills in both sides. */
const IN_WORDS = "Search concepts in words";

function Instruction() {
  const words = { label: "The instruction, as a system message", placeholder: "Talk like a pirate." };
  return <TextArea rows={3} {...words} {...of(instruction)} />;
}

/** The concepts that come with the server; their pairs can be edited. */
function ConceptSource() {
  const { concept, adding, chooseConcept, addConceptPairs } = store;
  const choice = ({ name, pairs, description }: (typeof concepts.value)[number]) => (
    <Radio key={name} group="concept" on={concept.value === name} onChoose={() => chooseConcept(name)}>
      <strong>{name}</strong> <span class="small muted">{pairs} pairs</span>
      <br />
      <span class="small">{description}</span>
    </Radio>
  );
  return (
    <div class="stack">
      <ErrorNote error={conceptList.error.value} />
      <List of={concepts.value} kind="stack choices" row={choice} />
      <Button label="Edit its pairs" disabled={concept.value === "" || adding.value} onClick={addConceptPairs} />
    </div>
  );
}
