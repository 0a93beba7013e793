import { polesOf } from "../core/concepts";
import { openTasks } from "../core/jobs";
import { open } from "../core/places";
import { doseBound, typicalNorms } from "../core/server";
import { vectorNamed, vectors } from "../core/vectors";
import { plain, signed } from "../maths/scales";
import { Button } from "../ui/Button";
import { Dial } from "../ui/Dial";
import { focusNext } from "../ui/focus";
import { ControlMore } from "./ControlMore";
import { type Control, dialFacts } from "./controls";
import { change, changeControl, draft } from "./draft";
import { Sweep } from "./Sweep";
import { addVector, canSweep, removeVector, run, runSweep, showLanding, swept } from "./store";
import { atChance } from "./WhyNothing";

/** The vectors in use, each with its dial, and one strength over all. */
export function SteeringPanel() {
  const { controls, overall } = draft.value;
  return (
    <section class="panel stack steering" aria-label="Steering">
      <h2>Steering</h2>
      {controls.length === 0 && <p class="muted">No vector yet. Add one to see what it changes.</p>}
      {controls.map((control) => (
        <ControlCard key={control.id} control={control} />
      ))}
      <AddVector />
      {controls.length > 0 && (
        <label class="field">
          <span class="row between">
            Overall strength <output class="number">× {plain(overall, 2)}</output>
          </span>
          <input
            type="range"
            min={0}
            max={2}
            step={0.05}
            value={overall}
            onInput={(event) => change({ overall: event.currentTarget.valueAsNumber })}
            onChange={run}
          />
        </label>
      )}
    </section>
  );
}

const DOSE = "How much the addition is of the usual size of the residual stream at these layers";

function ControlCard({ control }: { control: Control }) {
  const vector = vectorNamed(control.vector);
  const { overall } = draft.value;
  const facts = vector && dialFacts(vector, control, typicalNorms.value, doseBound.value, overall);
  const set = (part: Partial<Control>) => changeControl(control.id, part);
  return (
    <fieldset class={`control ${control.on ? "" : "is-off"}`}>
      <legend class="visually-hidden">{control.vector}</legend>
      <div class="row between head">
        <label class="row name">
          <input type="checkbox" checked={control.on} onChange={(event) => set({ on: event.currentTarget.checked })} />
          <strong>{control.vector}</strong>
        </label>
        <button
          type="button"
          class="quiet"
          onClick={() => {
            removeVector(control.id);
            focusNext('[aria-label="Add a vector"]');
          }}
        >
          <span aria-hidden="true">✕</span>
          <span class="visually-hidden">Remove {control.vector}</span>
        </button>
      </div>
      {control.operation === "add" && facts && (
        <>
          <Dial
            {...facts}
            name={control.vector}
            poles={polesOf(control.vector, vector)}
            value={control.strength}
            onChange={(strength) => set({ strength })}
            onEnd={run}
          />
          <div class="row between small">
            <span class={`word ${facts.word.startsWith("may") ? "breaks" : ""}`}>
              {facts.word}
              {facts.word === "not shown to steer" && " this way"}
            </span>
            <span class="muted" title={DOSE}>
              {overall !== 1 && (
                <span class="number">
                  {signed(control.strength)} × {plain(overall, 2)} = {signed(control.strength * overall)},{" "}
                </span>
              )}
              dose <span class="number">{plain(facts.dose, 2)}</span>
            </span>
          </div>
          {swept.value === control.id ? (
            <Sweep name={control.vector} onPick={(strength) => set({ strength })} />
          ) : (
            <Button
              label="Sweep the dial"
              kind="quiet"
              disabled={!canSweep(control.id)}
              onClick={() => runSweep(control.id)}
            />
          )}
        </>
      )}
      {vector && atChance(vector) && (
        <p class="small">This vector is not shown to read its concept better than chance.</p>
      )}
      <ControlMore control={control} vector={vector} set={set} />
    </fieldset>
  );
}

function AddVector() {
  const used = new Set(draft.value.controls.map((control) => control.vector));
  const free = (vectors.value ?? []).filter((vector) => !used.has(vector.name));
  return (
    <div class="row">
      <select
        aria-label="Add a vector"
        value=""
        onChange={(event) => {
          const vector = vectorNamed(event.currentTarget.value);
          if (vector) addVector(vector);
          event.currentTarget.value = "";
        }}
      >
        <option value="">{vectors.value !== null && free.length === 0 ? noneWords() : "Add a vector"}</option>
        {free.map((vector) => (
          <option key={vector.name} value={vector.name}>
            {vector.name}
          </option>
        ))}
      </select>
      <Button label="Make a new one" kind="quiet" onClick={() => open("make")} />
      <Button
        label="Saved answers"
        kind="quiet"
        title="Shows the saved answers again, and clears what is set"
        onClick={() => {
          showLanding();
          focusNext(".headline");
        }}
      />
    </div>
  );
}

/** Says why there is no vector to add. */
function noneWords(): string {
  if (openTasks.value.some(({ about }) => about.kind !== "measure")) return "More vectors are being made";
  return vectors.value?.length === 0 ? "No vector yet" : "Every vector is added";
}
