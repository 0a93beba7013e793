import { vectorByName } from "../frame/vectors";
import { Button } from "../ui/Button";
import { ErrorNote } from "../ui/Note";
import { Progress } from "../ui/Progress";
import { error, makeVector, making, name, openCard, stopMaking, stored } from "./making";
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
      <VectorState />
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
      {shown.length > SHOWN && <p class="small muted">and {shown.length - SHOWN} more texts that are drawn too</p>}
    </section>
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
      <p>{positive.length} texts are selected. A vector can be made that points from the others to them.</p>
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
        <button type="button" onClick={() => (lassoed.value = [])}>
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
