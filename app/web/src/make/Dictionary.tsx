import { computed, signal } from "@preact/signals";
import { api, type Dictionary, dataOf, type Schemas } from "../api/client";
import { showCard } from "../core/jobs";
import { Query } from "../core/query";
import { card, library, vectors } from "../core/server";
import { changing, given } from "../core/state";
import { plain, signed } from "../maths/scales";
import { linesOf, visible } from "../maths/text";
import { ChoiceField, NumberField, named, OptionalNumber, partsIn, Radio, Segments, TextArea, TextField } from "../ui/fields"; // biome-ignore format: one line
import { About, Ask, Button, Each, Form, List, More, Panel } from "../ui/parts";
import { about, featureScores, hints, searches } from "../words.json";
import { nameProblem } from "./work";

export const dictionaries = new Query(
  async (stop) => (await dataOf<{ data: Dictionary[] }>(api.GET("/v1/dictionaries", { signal: stop }))).data,
);

/** What is searched for, and in which dictionary; its name is empty for the first that can be used. */
const fields = signal({
  dictionary: "",
  kind: "texts" as keyof typeof featureScores,
  texts: "",
  against: "",
  near: "",
  top: 20,
  /** Only features with at least this output score; null: the output score is not measured. */
  leastScore: null as number | null,
});

export const setFields = changing(fields);

/** The feature that is made a vector, and the name it gets. */
export const feature = signal<number | null>(null);
export const featureName = signal("");

const dictionary = computed(() => {
  const known = dictionaries.data.value ?? [];
  return known.find((one) => one.name === fields.value.dictionary) ?? known.find((one) => one.problem == null) ?? null;
});

/** The vectors that have a direction where the features of the chosen dictionary are. */
const comparable = computed(() => {
  const layer = dictionary.value?.layer;
  return (vectors.value ?? []).filter((one) => layer != null && one.layers.includes(layer));
});

/** What is still missing before a search; null when nothing is. */
const searchProblem = computed<string | null>(() => {
  const { kind, texts, near } = fields.value;
  if (dictionary.value === null) return "Choose a dictionary.";
  if (kind === "texts" && linesOf(texts).length === 0) return "Write a text.";
  if (kind === "vector" && !comparable.value.some((one) => one.name === near)) return "Choose a vector.";
  return null;
});

export function choose(name: string): void {
  if (name === fields.value.dictionary) return;
  setFields({ dictionary: name });
  searching.forget();
  feature.value = null;
}

/** The features that were found, with what was asked. */
export const searching = new Query(async (stop) => {
  const { kind, leastScore } = fields.value;
  const options = { params: { path: { name: dictionary.value?.name ?? "" } }, body: searchBody(), signal: stop };
  const found = await dataOf<Schemas["DictionarySearchAnswer"]>(api.POST("/v1/dictionaries/{name}/search", options));
  return { ...found, kind, leastScore };
});

export async function search(): Promise<void> {
  if (searchProblem.value !== null) return;
  const before = card.value;
  if ((await searching.ask()) === null) return;
  feature.value = null;
  if (card.value === before) card.value = null; // not the card of a vector that was made meanwhile
}

export function searchBody() {
  const { kind, texts, against, near, top, leastScore } = fields.value;
  const others = linesOf(against);
  const asked =
    kind === "vector" ? { vector: near } : { texts: linesOf(texts), against: others.length > 0 ? others : null };
  return { top, ...given({ ...asked, min_output_score: leastScore }) };
}

/** Chooses a feature; its vector has the name that was typed, else one made from the number. */
export function chooseFeature(number: number): void {
  if (featureName.value === "" || featureName.value === suggested(feature.value)) featureName.value = suggested(number);
  feature.value = number;
}

const suggested = (number: number | null): string => (number === null ? "" : `feature-${number}`);

const storing = new Query((signal, dictionary: string, feature: number, name: string) =>
  api.POST("/v1/dictionaries/{name}/vectors", {
    params: { path: { name: dictionary } },
    body: { name, feature },
    signal,
  }),
);

export async function storeFeature(): Promise<void> {
  const [name, number, vector] = [searching.data.value?.dictionary, feature.value, featureName.value];
  if (name === undefined || number === null || nameProblem(vector) !== null) return;
  if ((await storing.ask(name, number, vector)) === null) return;
  await library.load();
  showCard(vector);
  if (featureName.value === vector) featureName.value = ""; // the next one may be chosen already
  if (feature.value === number) feature.value = null;
}

/** The dictionaries of the server, and what to search in one of them. */
export function DictionarySource() {
  const [problem, known] = [searchProblem.value, dictionaries.data.value ?? []];
  const words = { waiting: "Searching", label: "Search features" };
  const field = partsIn(fields);
  const near = [["", "Choose a vector"] as const, ...named(comparable.value)];
  const score = { min: 0, max: 1, step: 0.01, placeholder: "not measured" };
  const ofTexts = (
    <>
      <TextArea label="Texts that show the concept, one a line" rows={3} placeholder={EXAMPLES} {...field("texts")} />
      <TextArea label="Compared with (empty: neutral texts)" rows={2} {...field("against")} />
    </>
  );
  const ofVector =
    near.length > 1 ? (
      <ChoiceField label="Vector" options={near} {...field("near")} />
    ) : (
      <p class="muted">{hints.noComparable}</p>
    );
  return (
    <div class="stack">
      <List of={known} kind="stack choices" label="Dictionaries" row={choice} />
      <Segments label="What is searched for" options={searches} {...field("kind")} />
      {fields.value.kind === "vector" ? ofVector : ofTexts}
      <More summary="How many, and only those that steer">
        <div class="fields">
          <NumberField label="How many features" min={1} max={64} step={1} {...field("top")} />
          <OptionalNumber label="Output score of at least" {...score} {...field("leastScore")} />
        </div>
        <p class="small muted">{hints.features}</p>
      </More>
      <div class="row">
        <Ask query={searching} {...words} kind="primary" disabled={problem !== null} onAsk={search} />
        {problem && <span class="small muted">{problem}</span>}
      </div>
    </div>
  );
}

function choice({ name, problem, features, layer, architecture, model }: Dictionary) {
  const about = [`${(features ?? 0).toLocaleString("en")} features`, architecture, model].filter(Boolean).join(" · ");
  const on = dictionary.value?.name === name;
  return (
    <Radio key={name} group="dictionary" disabled={problem != null} on={on} onChoose={() => choose(name)}>
      <strong>{name}</strong>
      {layer != null && <span class="small muted"> layer {layer}</span>}
      <br />
      <span class="small">{problem == null ? about : `Cannot be used: ${problem}`}</span>
    </Radio>
  );
}

const EXAMPLES = "What a lovely day!\nI adore it.";

/** The features that a search found; the chosen one can be made a vector. */
export function Features() {
  const answer = searching.data.value;
  if (answer === null) return <About {...about.dictionary} />;
  const { dictionary, layer, kind, leastScore, features } = answer;
  return (
    <Panel label="Features">
      <div class="row between">
        <h2>
          Features of {dictionary} <span class="small muted">layer {layer}</span>
        </h2>
        <span class="small muted">score: {featureScores[kind]}</span>
      </div>
      {features.length === 0 && <p>None was found.{leastScore !== null && ` ${hints.lowerScore}`}</p>}
      <List of={features} kind="features" row={(one) => <Row key={one.feature} found={one} />} />
    </Panel>
  );
}

function Row({ found: { feature: number, score, promoted, output_score } }: { found: Schemas["FeatureAnswer"] }) {
  const on = feature.value === number;
  const wrong = nameProblem(featureName.value);
  const busy = storing.busy.value;
  const given = (text: string) => (featureName.value = text.trim().toLowerCase());
  const label = busy ? "Storing" : "Make a vector of it";
  return (
    <li class={on ? "on" : ""}>
      <Button kind="quiet" pressed={on} onClick={() => chooseFeature(number)}>
        <span class="facts">
          <strong>feature {number}</strong>
          <span class="number">{signed(score, 3)}</span>
          {output_score != null && <span class="small muted">output score {plain(output_score, 3)}</span>}
        </span>
        <span class="promoted small">
          <span class="muted">promotes </span>
          <Each of={promoted} row={(token) => <code key={token.id}>{visible(token.text)}</code>} />
        </span>
      </Button>
      {on && (
        <Form kind="row keep" label="Make it a vector" onSend={storeFeature} error={storing.error.value}>
          <TextField label="Name of the vector" value={featureName.value} onChange={given} />
          <Button label={label} submit kind="primary" disabled={busy || wrong !== null} />
          {wrong && <span class="small muted">{wrong}</span>}
        </Form>
      )}
    </li>
  );
}
