import { open } from "../frame/places";
import { doseBound, typicalNorms } from "../frame/server";
import { vectorNamed, vectors } from "../frame/vectors";
import { plain, signed } from "../maths/scales";
import { StrengthSlider } from "../ui/StrengthSlider";
import { ControlMore } from "./ControlMore";
import { type Control, sliderFacts } from "./controls";
import { change, changeControl, draft, removeControl } from "./draft";
import { atChance } from "./reasons";
import { addVector, draftProblem } from "./store";

/** The vectors in use, each with its slider, and one strength over all. */
export function SteeringPanel({ onSweep }: { onSweep: () => void }) {
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
        <>
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
            />
          </label>
          <div class="row">
            <button type="button" disabled={draftProblem.value !== null} onClick={onSweep}>
              Sweep the strength
            </button>
          </div>
        </>
      )}
    </section>
  );
}

function ControlCard({ control }: { control: Control }) {
  const vector = vectorNamed(control.vector);
  const { overall } = draft.value;
  const facts = vector && sliderFacts(vector, control, typicalNorms.value, doseBound.value, overall);
  const set = (part: Partial<Control>) => changeControl(control.id, part);
  return (
    <fieldset class={`control ${control.on ? "" : "is-off"}`}>
      <legend class="visually-hidden">{control.vector}</legend>
      <div class="row between head">
        <label class="row name">
          <input type="checkbox" checked={control.on} onChange={(event) => set({ on: event.currentTarget.checked })} />
          <strong>{control.vector}</strong>
        </label>
        <button type="button" class="quiet" onClick={() => removeControl(control.id)}>
          <span aria-hidden="true">✕</span>
          <span class="visually-hidden">Remove {control.vector}</span>
        </button>
      </div>
      {control.operation === "add" && facts && (
        <>
          <StrengthSlider
            label={`Strength of ${control.vector}`}
            value={control.strength}
            end={Math.max(facts.end, Math.abs(control.strength))}
            negative={facts.negative}
            positive={facts.positive}
            onChange={(strength) => set({ strength })}
          />
          <div class="row between">
            <span>
              <Strength strength={control.strength} overall={overall} />{" "}
              <span class={wordClass(facts.word)}>{facts.word}</span>
            </span>
            <span
              class="small muted"
              title="How much the addition is of the usual size of the residual stream at these layers"
            >
              dose <span class="number">{plain(facts.dose, 2)}</span>
              {!facts.positive.measured && ", range not measured"}
            </span>
          </div>
        </>
      )}
      {vector && atChance(vector) && (
        <p class="small">This vector is not shown to read its concept better than chance.</p>
      )}
      <ControlMore control={control} vector={vector} set={set} />
    </fieldset>
  );
}

/** A strength, and what acts of it. */
function Strength({ strength, overall }: { strength: number; overall: number }) {
  return (
    <>
      <strong class="number">{signed(strength)}</strong>
      {overall !== 1 && (
        <span class="small muted number">
          {" "}
          × {plain(overall, 2)} = {signed(strength * overall)}
        </span>
      )}
    </>
  );
}

function wordClass(word: string): string {
  return word.endsWith("text") ? "word breaks" : "word";
}

function AddVector() {
  const used = new Set(draft.value.controls.map((control) => control.vector));
  const free = (vectors.value ?? []).filter((vector) => !used.has(vector.name));
  const none = vectors.value?.length === 0 ? "No vector yet" : "Every vector is added";
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
        <option value="">{vectors.value !== null && free.length === 0 ? none : "Add a vector"}</option>
        {free.map((vector) => (
          <option key={vector.name} value={vector.name}>
            {vector.name}
          </option>
        ))}
      </select>
      <button type="button" class="quiet" onClick={() => open("make")}>
        Make a new one
      </button>
    </div>
  );
}
