import type { DictionaryFeature } from "../api/types";
import { plain, signed } from "../maths/scales";
import { Button } from "../ui/Button";
import { TextField } from "../ui/fields";
import { chooseFeature, feature, featureName, found, storeFeature, storing } from "./dictionary";
import { nameProblem } from "./work";

/** The features that a search found; the chosen one can be made a vector. */
export function Features() {
  const answer = found.value;
  if (answer === null) return <About />;
  return (
    <section class="panel stack" aria-label="Features">
      <div class="row between">
        <h2>
          Features of {answer.dictionary} <span class="small muted">layer {answer.layer}</span>
        </h2>
        <span class="small muted">score: {SCORES[answer.query]}</span>
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

const SCORES = { texts: "how much more active in the texts", vector: "cosine with the vector" } as const;

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

/** Shows what of a token would not be seen. */
function visible(text: string): string {
  return (
    text
      .replaceAll("\n", "⏎")
      .replaceAll("\t", "⇥")
      .replace(/^ (?=.)/, "") || "␣"
  );
}

function Keep() {
  const wrong = nameProblem(featureName.value);
  const keep = (event: Event) => {
    event.preventDefault();
    void storeFeature();
  };
  return (
    <form class="row keep" aria-label="Make it a vector" onSubmit={keep}>
      <TextField
        label="Name of the vector"
        value={featureName.value}
        onInput={(name) => {
          featureName.value = name.trim().toLowerCase();
        }}
      />
      <Button submit kind="primary" disabled={storing.value || wrong !== null}>
        {storing.value ? "Storing" : "Make a vector of it"}
      </Button>
      {wrong && <span class="small muted">{wrong}</span>}
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
