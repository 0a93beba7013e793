import { useState } from "preact/hooks";
import { vectorByName } from "../frame/vectors";
import { Button } from "../ui/Button";
import { ErrorNote } from "../ui/Note";
import { Progress } from "../ui/Progress";
import { error, makeVector, making, name, openCard, stopMaking, stored } from "./making";
import { drawn, lasso, lassoed, listed, picked, select } from "./store";

const SHOWN_AT_ONCE = 200;

/** The texts as a list, the picked one, and a vector made from the selected ones. */
export function Selection() {
  const set = drawn.value?.set;
  if (!set) return null;
  const selected = lassoed.value;
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
          Click a point or a text to follow it through the layers. Draw around points, or tick texts, to select them.
        </p>
      )}
      <VectorState />
      <TextList texts={set.texts} />
    </section>
  );
}

/** The texts with a box each that selects them: what a lasso does with the pointer, the keyboard does here. */
function TextList({ texts }: { texts: readonly string[] }) {
  const [most, setMost] = useState(SHOWN_AT_ONCE);
  const selected = new Set(lassoed.value);
  const shown = listed.value ?? texts.map((_, index) => index);
  const left = shown.length - most;
  return (
    <>
      {listed.value !== null && (
        <div class="row">
          <button type="button" onClick={() => (listed.value = null)}>
            List all texts
          </button>
        </div>
      )}
      <ul class="texts" aria-label={listed.value === null ? "All texts" : "Selected texts"}>
        {shown.slice(0, most).map((index) => (
          <li key={index}>
            <input
              type="checkbox"
              aria-label={`Select: ${texts[index]}`}
              checked={selected.has(index)}
              onChange={(event) => select(index, event.currentTarget.checked)}
            />
            <button
              type="button"
              class="quiet small"
              dir="auto"
              aria-pressed={picked.value === index}
              onClick={() => (picked.value = picked.value === index ? null : index)}
            >
              {texts[index]}
            </button>
          </li>
        ))}
      </ul>
      {left > 0 && (
        <p class="row small muted">
          and {left} more texts that are drawn too{" "}
          <button type="button" class="small" onClick={() => setMost(most + SHOWN_AT_ONCE)}>
            List {Math.min(left, SHOWN_AT_ONCE)} more
          </button>
        </p>
      )}
    </>
  );
}

function SelectionVector({ positive }: { positive: readonly number[] }) {
  const texts = drawn.value?.set.texts ?? [];
  const make = (event: Event) => {
    event.preventDefault();
    const chosen = new Set(positive);
    const selected = texts.filter((_, index) => chosen.has(index));
    const others = texts.filter((_, index) => !chosen.has(index));
    void makeVector(name.value, selected, others);
  };
  const disabled = making.value !== null || name.value === "" || positive.length === texts.length;
  return (
    <form class="stack" onSubmit={make}>
      <p>
        {positive.length === 1 ? "1 text is" : `${positive.length} texts are`} selected. A vector can be made that
        points from the others to them.
      </p>
      <div class="row">
        <input
          type="text"
          aria-label="Name of the vector"
          placeholder="my-concept"
          value={name.value}
          onInput={(event) => {
            name.value = event.currentTarget.value.trim().toLowerCase();
          }}
        />
        <Button submit kind="primary" disabled={disabled}>
          {making.value ? "Making it" : "Make a vector"}
        </Button>
        <button type="button" onClick={() => lasso([])}>
          Clear the selection
        </button>
      </div>
    </form>
  );
}

/** How far the vector of a selection is, and what became of it. It is shown whatever is selected now. */
function VectorState() {
  const now = making.value;
  const vector = stored.value;
  return (
    <>
      {now && <Progress message={now.message} done={now.done} total={now.total} onStop={stopMaking} />}
      <ErrorNote error={error.value} />
      {vector !== null && vectorByName.value.has(vector) && (
        <div class="row" role="status">
          <span>{vector} is in the library.</span>
          <button type="button" onClick={() => openCard(vector)}>
            Show its card
          </button>
        </div>
      )}
    </>
  );
}
