import type { Dictionary, DictionaryFeature } from "../api/types";
import { plain, signed } from "../maths/scales";
import { visible } from "../maths/text";
import { Button } from "../ui/Button";
import { ChoiceField, NumberField, named, OptionalNumber, partsOf, Segments, TextArea, TextField } from "../ui/fields";
import { ErrorNote } from "../ui/Note";
import {
  choose,
  chooseFeature,
  comparable,
  dictionaries,
  dictionary,
  feature,
  featureName,
  fields,
  search,
  searching,
  searchProblem,
  setFields,
  storeFeature,
  storing,
} from "./dictionary";
import { nameProblem } from "./work";

const KINDS = { texts: "Active in texts", vector: "Near a vector" } as const;

/** The dictionaries of the server, and what to search in one of them. */
export function DictionarySource() {
  const busy = searching.busy.value;
  return (
    <div class="stack">
      <ul class="stack choices" aria-label="Dictionaries">
        {dictionaries.data.value?.map((one) => (
          <Choice key={one.name} dictionary={one} />
        ))}
      </ul>
      <SearchForm />
      <div class="row">
        <Button
          label={busy ? "Searching" : "Search features"}
          kind="primary"
          disabled={busy || searchProblem.value !== null}
          onClick={() => void search()}
        />
        {busy && <Button label="Stop" onClick={() => searching.stop()} />}
        {searchProblem.value && <span class="small muted">{searchProblem.value}</span>}
      </div>
    </div>
  );
}

function Choice({ dictionary: { name, problem, features, layer, architecture, model } }: { dictionary: Dictionary }) {
  const usable = problem == null;
  return (
    <li>
      <label class={`row choice ${usable ? "" : "muted"}`}>
        <input
          type="radio"
          name="dictionary"
          disabled={!usable}
          checked={dictionary.value?.name === name}
          onChange={() => choose(name)}
        />
        <span>
          <strong>{name}</strong>
          {layer != null && <span class="small muted"> layer {layer}</span>}
          <br />
          <span class="small">
            {usable
              ? [`${(features ?? 0).toLocaleString("en")} features`, architecture, model].filter(Boolean).join(" · ")
              : `Cannot be used: ${problem}`}
          </span>
        </span>
      </label>
    </li>
  );
}

function SearchForm() {
  const field = partsOf(fields.value, setFields);
  return (
    <>
      <Segments label="What is searched for" options={KINDS} {...field("kind")} />
      {fields.value.kind === "vector" && <VectorQuery />}
      {fields.value.kind === "texts" && (
        <>
          <TextArea
            label="Texts that show the concept, one a line"
            rows={3}
            placeholder={"What a lovely day!\nI adore it."}
            {...field("texts")}
          />
          <TextArea label="Compared with (empty: neutral texts)" rows={2} {...field("against")} />
        </>
      )}
      <details class="more">
        <summary>How many, and only those that steer</summary>
        <div class="stack">
          <div class="fields">
            <NumberField label="How many features" min={1} max={64} step={1} {...field("top")} />
            <OptionalNumber
              label="Output score of at least"
              min={0}
              max={1}
              step={0.01}
              placeholder="not measured"
              {...field("leastScore")}
            />
          </div>
          <p class="small muted">
            A feature that is active on a concept often does not steer toward it. The output score is how far adding it
            makes the model say what it promotes; 0.01 is a good bound. It is measured for the 64 best features.
          </p>
        </div>
      </details>
    </>
  );
}

function VectorQuery() {
  if (comparable.value.length === 0)
    return <p class="muted">No vector of the library has a direction at the layer of this dictionary.</p>;
  const options = [["", "Choose a vector"], ...named(comparable.value)] as [string, string][];
  return <ChoiceField label="Vector" options={options} {...partsOf(fields.value, setFields)("near")} />;
}

const SCORES = { texts: "how much more active in the texts", vector: "cosine with the vector" } as const;

/** The features that a search found; the chosen one can be made a vector. */
export function Features() {
  const answer = searching.data.value;
  if (answer === null) return <About />;
  return (
    <section class="panel stack" aria-label="Features">
      <div class="row between">
        <h2>
          Features of {answer.dictionary} <span class="small muted">layer {answer.layer}</span>
        </h2>
        <span class="small muted">score: {SCORES[answer.kind]}</span>
      </div>
      {answer.features.length === 0 ? (
        <p>
          None was found.
          {answer.leastScore !== null && " No feature reaches the output score that was asked for; try a lower one."}
        </p>
      ) : (
        <ul class="features">
          {answer.features.map((one) => (
            <Row key={one.feature} found={one} />
          ))}
        </ul>
      )}
    </section>
  );
}

function Row({ found: { feature: number, score, promoted, output_score } }: { found: DictionaryFeature }) {
  const on = feature.value === number;
  return (
    <li class={on ? "on" : ""}>
      <button type="button" class="quiet" aria-pressed={on} onClick={() => chooseFeature(number)}>
        <span class="facts">
          <strong>feature {number}</strong>
          <span class="number">{signed(score, 3)}</span>
          {output_score != null && <span class="small muted">output score {plain(output_score, 3)}</span>}
        </span>
        <span class="promoted small">
          <span class="muted">promotes </span>
          {promoted.map((token) => (
            <code key={token.id}>{visible(token.text)}</code>
          ))}
        </span>
      </button>
      {on && <Keep />}
    </li>
  );
}

function Keep() {
  const wrong = nameProblem(featureName.value);
  const busy = storing.busy.value;
  const keep = (event: Event) => {
    event.preventDefault();
    void storeFeature();
  };
  const given = (text: string) => (featureName.value = text.trim().toLowerCase());
  return (
    <form class="row keep" aria-label="Make it a vector" onSubmit={keep}>
      <TextField label="Name of the vector" value={featureName.value} onChange={given} />
      <Button
        label={busy ? "Storing" : "Make a vector of it"}
        submit
        kind="primary"
        disabled={busy || wrong !== null}
      />
      {wrong && <span class="small muted">{wrong}</span>}
      <ErrorNote error={storing.error.value} />
    </form>
  );
}

function About() {
  return (
    <section class="panel stack" aria-label="How it works">
      <h2>Directions that were found without labels</h2>
      <p>
        A sparse autoencoder splits the activations of one layer into thousands of features, of which few are active at
        a time. Search for those that are more active in some texts than in others, or that lie near a vector of the
        library.
      </p>
      <p>
        A feature has no name. The tokens that it promotes, those that its direction makes likelier at the output, say
        what it may be about. One click makes it a vector, to steer and to read with.
      </p>
      <p class="muted">No quality card comes with it: whether it steers is measured afterwards.</p>
    </section>
  );
}
