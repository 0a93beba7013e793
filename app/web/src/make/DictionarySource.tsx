import { useEffect } from "preact/hooks";
import { apiKey } from "../api/key";
import type { Dictionary } from "../api/types";
import { Button } from "../ui/Button";
import { ChoiceField, OptionalNumber } from "../ui/fields";
import { NumberField } from "../ui/NumberField";
import { Segments } from "../ui/Segments";
import {
  against,
  choose,
  chosen,
  comparable,
  dictionaries,
  leastScore,
  loadDictionaries,
  near,
  query,
  search,
  searching,
  searchProblem,
  stopSearch,
  texts,
  top,
} from "./dictionary";
import { error, loadChoices } from "./work";

/** The dictionaries of the server, and what to search in one of them. */
export function DictionarySource() {
  useEffect(() => void loadChoices(loadDictionaries), [apiKey.value]);
  const known = dictionaries.value;
  if (known === null) return <p class="muted">{error.value ? "The dictionaries are not known." : "Loading"}</p>;
  if (known.length === 0) return <NoDictionary />;
  return (
    <div class="stack">
      <ul class="stack choices" aria-label="Dictionaries">
        {known.map((one) => (
          <Choice key={one.name} dictionary={one} />
        ))}
      </ul>
      <Query />
      <div class="row">
        <Button kind="primary" disabled={searching.value || searchProblem.value !== null} onClick={() => void search()}>
          {searching.value ? "Searching" : "Search features"}
        </Button>
        {searching.value && (
          <button type="button" onClick={stopSearch}>
            Stop
          </button>
        )}
        {searchProblem.value && <span class="small muted">{searchProblem.value}</span>}
      </div>
    </div>
  );
}

function NoDictionary() {
  return (
    <div class="stack">
      <p>
        This server has no dictionary. A dictionary is a sparse autoencoder: thousands of directions of the model that
        were found without labels.
      </p>
      <p class="muted">
        The operator puts one in SAELens format (<code>cfg.json</code> and <code>sae_weights.safetensors</code>) in a
        folder, and starts the server with the setting
      </p>
      <pre class="code">STEERING_DICTIONARIES=/path/to/folder</pre>
    </div>
  );
}

function Choice({ dictionary }: { dictionary: Dictionary }) {
  const { name, problem, features, layer, architecture, model } = dictionary;
  const usable = problem == null;
  return (
    <li>
      <label class={`row choice ${usable ? "" : "muted"}`}>
        <input
          type="radio"
          name="dictionary"
          disabled={!usable}
          checked={chosen.value === name}
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

function Query() {
  return (
    <>
      <Segments
        label="What is searched for"
        value={query.value}
        options={[
          ["texts", "Active in texts"],
          ["vector", "Near a vector"],
        ]}
        onChange={(next) => {
          query.value = next;
        }}
      />
      {query.value === "texts" ? <TextQuery /> : <VectorQuery />}
      <details class="more">
        <summary>How many, and only those that steer</summary>
        <div class="stack">
          <div class="fields">
            <NumberField
              label="How many features"
              value={top.value}
              min={1}
              max={64}
              step={1}
              onChange={(count) => {
                top.value = count;
              }}
            />
            <OptionalNumber
              label="Output score of at least"
              value={leastScore.value}
              step={0.01}
              min={0}
              max={1}
              placeholder="not measured"
              onChange={(least) => {
                leastScore.value = least;
              }}
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

function TextQuery() {
  return (
    <>
      <label class="field">
        <span>Texts that show the concept, one a line</span>
        <textarea
          rows={3}
          value={texts.value}
          placeholder={"What a lovely day!\nI adore it."}
          onInput={(event) => {
            texts.value = event.currentTarget.value;
          }}
        />
      </label>
      <label class="field">
        <span>Compared with (empty: neutral texts)</span>
        <textarea
          rows={2}
          value={against.value}
          onInput={(event) => {
            against.value = event.currentTarget.value;
          }}
        />
      </label>
    </>
  );
}

function VectorQuery() {
  if (comparable.value.length === 0)
    return <p class="muted">No vector of the library has a direction at the layer of this dictionary.</p>;
  return (
    <ChoiceField
      label="Vector"
      value={near.value}
      options={[["", "Choose a vector"], ...comparable.value.map((one) => [one.name, one.name] as const)]}
      onChange={(name) => {
        near.value = name;
      }}
    />
  );
}
