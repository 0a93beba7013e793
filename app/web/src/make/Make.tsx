import "../styles/make.css";
import { useEffect } from "preact/hooks";
import { capabilities } from "../frame/server";
import { useActions } from "../frame/shortcuts";
import { Button } from "../ui/Button";
import { ChoiceField } from "../ui/fields";
import { ErrorNote, Note } from "../ui/Note";
import { Progress } from "../ui/Progress";
import { Segments } from "../ui/Segments";
import { DictionarySource } from "./DictionarySource";
import { search, searching, stopSearch } from "./dictionary";
import { Features } from "./Features";
import { ConceptSource, DescribeSource } from "./OtherSources";
import { PairTable } from "./PairTable";
import { Result } from "./Result";
import { extract, method, problem, source, warnings } from "./store";
import { AboutTransfer, TransferSource } from "./TransferSource";
import { carryOver, transferProblem } from "./transfer";
import { error, made, name, running, stop } from "./work";

const STEPS = ["Examples", "Find", "Look and keep"] as const;

/** Does what the button of the chosen source does. */
function run(): void {
  if (running.value !== null) return;
  void (source.value === "dictionary" ? search() : source.value === "transfer" ? carryOver() : extract());
}

function stopAll(): void {
  stop();
  stopSearch();
}

/** Make: a vector of one's own, from examples, a dictionary or another model to a measured card. */
export default function Make() {
  useEffect(() => useActions({ run, stop: stopAll }), []);
  const step = running.value ? 1 : made.value ? 2 : 0;
  return (
    <>
      <ol class="steps row" aria-label="Steps">
        {STEPS.map((title, index) => (
          <li key={title} {...(index === step ? { "aria-current": "step" as const } : {})}>
            <span class="number">{index + 1}</span> {title}
          </li>
        ))}
      </ol>
      <div class="make">
        <Examples />
        <div class="stack" aria-busy={searching.value}>
          <ErrorNote error={error.value} />
          {running.value && <Progress {...running.value} onStop={stop} />}
          {made.value ? <Result name={made.value} /> : <Beginning />}
        </div>
      </div>
    </>
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
        value={source.value}
        options={[
          ["pairs", "Pairs"],
          ["concept", "Concept"],
          ["describe", "Trait"],
          ["dictionary", "Dictionary"],
          ["transfer", "Another model"],
        ]}
        onChange={(next) => {
          source.value = next;
          error.value = null;
        }}
      />
      {source.value === "pairs" && <PairTable />}
      {source.value === "concept" && <ConceptSource />}
      {source.value === "describe" && <DescribeSource />}
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

function NameAndStart() {
  const carried = source.value === "transfer";
  const missing = carried ? transferProblem.value : problem.value;
  return (
    <>
      <div class="row">
        <label class="field grow">
          <span>Name</span>
          <input
            type="text"
            value={name.value}
            placeholder="my-concept"
            autocomplete="off"
            onInput={(event) => {
              name.value = event.currentTarget.value.trim().toLowerCase();
            }}
          />
        </label>
        {!carried && <MethodField />}
      </div>
      <div class="row">
        <Button kind="primary" disabled={missing !== null || running.value !== null} onClick={run}>
          {carried ? "Carry it over" : "Find the vector"}
        </Button>
        {missing && <span class="small muted">{missing}</span>}
      </div>
    </>
  );
}

function MethodField() {
  return (
    <ChoiceField
      label="Method"
      value={method.value}
      options={(capabilities.value?.methods ?? ["mean_difference"]).map(
        (one) => [one, one.replaceAll("_", " ")] as const,
      )}
      onChange={(one) => {
        method.value = one;
      }}
    />
  );
}

function Explanation() {
  return (
    <section class="panel stack" aria-label="How it works">
      <h2>How a vector is found</h2>
      <p>
        Write pairs of texts that differ in one thing only: the same event described warmly and coldly, the same answer
        in formal and in casual words. The model reads both sides. Where their activations differ on average, layer by
        layer, is the direction of the concept.
      </p>
      <p>
        Some pairs are set aside and the vector is tested on them, against random directions. The card shows at which
        layers it tells the two sides apart, and which layer to steer at.
      </p>
      <p class="muted">Twenty pairs are a good start. More topics are better than more pairs on one topic.</p>
    </section>
  );
}
