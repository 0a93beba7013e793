import { useState } from "preact/hooks";
import { beginJob, taskOf } from "../core/jobs";
import { mayDo } from "../core/server";
import { TaskProgress } from "../frame/JobTray";
import { SearchField, typed } from "../ui/fields";
import { Button, ErrorNote, Form, Panel } from "../ui/parts";
import { hints } from "../words.json";
import { drawn, lasso, lassoed, listed, neighbours, picked, select } from "./store";

const SHOWN_AT_ONCE = 200;

/** The texts as a list, the picked one, and a vector made from the selected ones. */
export function Selection() {
  const set = drawn.value?.set;
  if (!set) return null;
  const selected = lassoed.value;
  const task = taskOf("space"); // the tray has its vector once it is there
  return (
    <Panel label="Texts">
      {picked.value !== null && (
        <>
          <p>
            <strong>Its way through the layers is drawn:</strong> {set.texts[picked.value]}
          </p>
          <p class="small muted">Nearest in this picture:</p>
          <ol class="neighbours small" aria-label="Nearest texts">
            {neighbours.value.map((index) => (
              <li key={index} dir="auto">
                {set.texts[index]}
              </li>
            ))}
          </ol>
        </>
      )}
      {selected.length > 0 ? <SelectionVector positive={selected} /> : <p class="small muted">{hints.select}</p>}
      {task && (task.ended.value ? <ErrorNote error={task.error.value} /> : <TaskProgress task={task} />)}
      <TextList texts={set.texts} />
    </Panel>
  );
}

/** The texts with a box each that selects them: what a lasso does with the pointer, the keyboard does here. */
function TextList({ texts }: { texts: readonly string[] }) {
  const [most, setMost] = useState(SHOWN_AT_ONCE);
  const [search, setSearch] = useState("");
  const selected = new Set(lassoed.value);
  const wanted = search.trim().toLowerCase();
  const all = listed.value ?? texts.map((_, index) => index);
  const shown = wanted === "" ? all : all.filter((index) => texts[index]?.toLowerCase().includes(wanted));
  const left = shown.length - most;
  const follow = (index: number) => (picked.value = picked.value === index ? null : index);
  return (
    <>
      <SearchField label="Search the texts" value={search} onChange={setSearch} />
      {listed.value !== null && <Button label="List all texts" onClick={() => (listed.value = null)} />}
      <ul class="texts" aria-label={listed.value === null ? "All texts" : "Selected texts"}>
        {shown.slice(0, most).map((index) => (
          <li key={index}>
            <input
              type="checkbox"
              aria-label={`Select: ${texts[index]}`}
              checked={selected.has(index)}
              onChange={(event) => select(index, event.currentTarget.checked)}
            />
            <Button kind="quiet small" pressed={picked.value === index} onClick={() => follow(index)}>
              <span dir="auto">{texts[index]}</span>
            </Button>
          </li>
        ))}
      </ul>
      {left > 0 && (
        <p class="row small muted">
          and {left} more texts that are drawn too{" "}
          <Button kind="small" onClick={() => setMost(most + SHOWN_AT_ONCE)}>
            List {Math.min(left, SHOWN_AT_ONCE)} more
          </Button>
        </p>
      )}
    </>
  );
}

function SelectionVector({ positive }: { positive: readonly number[] }) {
  const [name, setName] = useState("");
  const texts = drawn.value?.set.texts ?? [];
  const task = taskOf("space");
  const running = task !== null && !task.ended.value;
  const disabled = running || name === "" || positive.length === texts.length || !mayDo("write");
  const given = typed((text) => setName(text.trim().toLowerCase()));
  return (
    <Form onSend={() => makeVector(name, positive, texts)}>
      <p>
        {positive.length === 1 ? "1 text is" : `${positive.length} texts are`} selected. A vector can be made that
        points from the others to them.
      </p>
      <div class="row">
        <input type="text" aria-label="Name of the vector" placeholder="my-concept" value={name} {...given} />
        <Button label={running ? "Making it" : "Make a vector"} submit kind="primary" disabled={disabled} />
        <Button label="Clear the selection" onClick={() => lasso([])} />
      </div>
    </Form>
  );
}

/** Makes a vector that points from the other texts to the selected ones. */
export function makeVector(name: string, selected: readonly number[], texts: readonly string[]) {
  const chosen = new Set(selected);
  const body = {
    name,
    positive: texts.filter((_, index) => chosen.has(index)),
    negative: texts.filter((_, index) => !chosen.has(index)),
  };
  return beginJob({ place: "space", kind: "extract", vector: name }, "/v1/vectors/extract", body);
}
