import { useEffect } from "preact/hooks";
import { apiKey } from "../api/key";
import { concepts, loadConcepts } from "../compare/store";
import { Button } from "../ui/Button";
import { addConceptPairs, adding, chooseConcept, concept, trait } from "./store";
import { loadChoices } from "./work";

/** The concepts that come with the server; their pairs can be edited. */
export function ConceptSource() {
  useEffect(() => void loadChoices(loadConcepts), [apiKey.value]);
  return (
    <div class="stack">
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
        <Button disabled={concept.value === "" || adding.value} onClick={() => void addConceptPairs()}>
          Edit its pairs
        </Button>
      </div>
    </div>
  );
}

/** A trait in words; the loaded model writes the contrasting answers itself. */
export function DescribeSource() {
  return (
    <div class="stack">
      <label class="field">
        <span>The trait</span>
        <textarea
          rows={2}
          value={trait.value.trait}
          placeholder="Speaks like a pirate"
          onInput={(event) => {
            trait.value = { ...trait.value, trait: event.currentTarget.value };
          }}
        />
      </label>
      <label class="field">
        <span>Its opposite</span>
        <textarea
          rows={2}
          value={trait.value.opposite}
          placeholder="Speaks plainly"
          onInput={(event) => {
            trait.value = { ...trait.value, opposite: event.currentTarget.value };
          }}
        />
      </label>
      <p class="small muted">
        The loaded model answers questions in both ways, and the vector is found from its answers. A small model follows
        such instructions only roughly.
      </p>
    </div>
  );
}
