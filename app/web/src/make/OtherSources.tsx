import { useEffect } from "preact/hooks";
import { api, dataOf } from "../api/client";
import { concepts, loadConcepts } from "../compare/store";
import type { PairRow } from "../maths/table";
import { concept, rows, source, trait } from "./store";
import { error, name } from "./work";

interface ConceptDetail {
  data: { positive: unknown; negative: unknown }[];
}

/** The concepts that come with the server; their pairs can be edited. */
export function ConceptSource() {
  useEffect(() => void loadConcepts().catch((failure) => (error.value = failure)), []);
  const edit = async () => {
    const detail = await dataOf<ConceptDetail>(
      api.GET("/v1/concepts/{name}", { params: { path: { name: concept.value } } }),
    );
    rows.value = detail.data.map(
      (pair): PairRow => ({ positive: textOf(pair.positive), negative: textOf(pair.negative) }),
    );
    source.value = "pairs";
  };
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
                onChange={() => {
                  concept.value = one.name;
                  name.value = one.name;
                }}
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
        <button
          type="button"
          disabled={concept.value === ""}
          onClick={() => void edit().catch((failure) => (error.value = failure))}
        >
          Edit its pairs
        </button>
      </div>
    </div>
  );
}

function textOf(text: unknown): string {
  if (typeof text === "string") return text;
  const messages = text as { role: string; content: string }[];
  return messages.map((message) => message.content).join("\n");
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
