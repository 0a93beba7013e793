import { useState } from "preact/hooks";
import { api, dataOf } from "../api/client";
import type { Job } from "../api/types";
import { open } from "../frame/places";
import { loadVectors } from "../frame/vectors";
import { watchJob } from "../jobs/watch";
import { made } from "../make/work";
import { ErrorNote } from "../ui/Note";
import { drawn, lassoed, picked } from "./store";

const SHOWN = 200;

/** The texts as a list, the picked one, and a vector made from the selected ones. */
export function Selection() {
  const set = drawn.value?.set;
  if (!set) return null;
  const selected = lassoed.value;
  const shown = selected.length > 0 ? selected : set.texts.map((_, index) => index);
  return (
    <section class="panel stack" aria-label="Texts">
      {picked.value !== null && (
        <p>
          <strong>Its way through the layers is drawn:</strong> {set.texts[picked.value]}
        </p>
      )}
      {selected.length > 0 ? (
        <SelectionVector positive={selected} />
      ) : (
        <p class="small muted">
          Click a point or a text to follow it through the layers. Draw around points to select them.
        </p>
      )}
      <ul class="texts" aria-label={selected.length > 0 ? "Selected texts" : "All texts"}>
        {shown.slice(0, SHOWN).map((index) => (
          <li key={index}>
            <button
              type="button"
              class="quiet small"
              aria-pressed={picked.value === index}
              onClick={() => (picked.value = picked.value === index ? null : index)}
            >
              {set.texts[index]}
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

function SelectionVector({ positive }: { positive: readonly number[] }) {
  const [name, setName] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const texts = drawn.value?.set.texts ?? [];
  const make = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      const chosen = new Set(positive);
      const body = {
        name,
        positive: texts.filter((_, index) => chosen.has(index)),
        negative: texts.filter((_, index) => !chosen.has(index)),
      };
      await watchJob(await dataOf<Job>(api.POST("/v1/vectors/extract", { body })), () => undefined);
      await loadVectors();
      made.value = name;
      open("make");
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };
  return (
    <form class="stack" onSubmit={(event) => void make(event)}>
      <p>{positive.length} texts are selected. A vector can be made that points from the others to them.</p>
      <div class="row">
        <input
          type="text"
          aria-label="Name of the vector"
          placeholder="my-concept"
          value={name}
          onInput={(event) => setName(event.currentTarget.value.trim().toLowerCase())}
        />
        <button type="submit" class="primary" disabled={busy || name === "" || positive.length === texts.length}>
          {busy ? "Making it" : "Make a vector"}
        </button>
        <button type="button" onClick={() => (lassoed.value = [])}>
          Clear the selection
        </button>
      </div>
      <ErrorNote error={error} />
    </form>
  );
}
