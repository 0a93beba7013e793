import "../styles/make.css";
import { useEffect } from "preact/hooks";
import { capabilities } from "../frame/server";
import { useActions } from "../frame/shortcuts";
import { ErrorNote, Note } from "../ui/Note";
import { Progress } from "../ui/Progress";
import { Segments } from "../ui/Segments";
import { ConceptSource, DescribeSource } from "./OtherSources";
import { PairTable } from "./PairTable";
import { Result } from "./Result";
import { error, made, make, method, name, problem, running, source, stop, warnings } from "./store";

const STEPS = ["Examples", "Find", "Look and keep"] as const;

/** Make: a vector of one's own, from examples to a measured card. */
export default function Make() {
  useEffect(() => useActions({ run: () => void make(), stop }), []);
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
        <div class="stack">
          <ErrorNote error={error.value} />
          {running.value && <Progress {...running.value} onStop={stop} />}
          {made.value ? <Result name={made.value} /> : <Explanation />}
        </div>
      </div>
    </>
  );
}

function Examples() {
  return (
    <section class="panel stack" aria-label="Examples">
      <Segments
        label="Where the examples come from"
        value={source.value}
        options={[
          ["pairs", "Pairs"],
          ["concept", "Starter concept"],
          ["describe", "Describe a trait"],
        ]}
        onChange={(next) => {
          source.value = next;
        }}
      />
      {source.value === "pairs" && <PairTable />}
      {source.value === "concept" && <ConceptSource />}
      {source.value === "describe" && <DescribeSource />}
      {warnings.value.map((warning) => (
        <Note key={warning} kind="notice">
          {warning}
        </Note>
      ))}
      <NameAndMethod />
    </section>
  );
}

function NameAndMethod() {
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
        <label class="field">
          <span>Method</span>
          <select
            value={method.value}
            onChange={(event) => {
              method.value = event.currentTarget.value;
            }}
          >
            {(capabilities.value?.methods ?? ["mean_difference"]).map((one) => (
              <option key={one} value={one}>
                {one.replaceAll("_", " ")}
              </option>
            ))}
          </select>
        </label>
      </div>
      <div class="row">
        <button
          type="button"
          class="primary"
          disabled={problem.value !== null || running.value !== null}
          onClick={() => void make()}
        >
          Find the vector
        </button>
        {problem.value && <span class="small muted">{problem.value}</span>}
      </div>
    </>
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
      <p class="muted">Sixteen pairs are a good start. More topics are better than more pairs on one topic.</p>
    </section>
  );
}
