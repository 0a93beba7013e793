import { openTasks } from "../core/jobs";
import { open } from "../core/places";
import { doseBound, polesOf, typicalNorms, vectorNamed, vectors } from "../core/server";
import { Term } from "../frame/dialogs";
import { fullScale, magnitude, plain, signed } from "../maths/scales";
import { atChance } from "../maths/strength";
import { Dial } from "../ui/Dial";
import { Slider } from "../ui/fields";
import { Button, Each, ErrorNote, focusing, Note, Remove } from "../ui/parts";
import { ControlMore } from "./ControlMore";
import { type Control, dialFacts } from "./controls";
import { change, changeControl, draft } from "./draft";
import * as play from "./store";

export function SteeringPanel() {
  const { controls, overall } = draft.value;
  const turn = (next: number) => change({ overall: next });
  const used = new Set(draft.value.controls.map((control) => control.vector));
  const free = (vectors.value ?? []).filter((vector) => !used.has(vector.name));
  const making = openTasks.value.some(({ about }) => about.kind !== "measure");
  const all = vectors.value?.length === 0 ? "No vector yet" : "Every vector is added";
  const none = making ? "More vectors are being made" : all;
  const add = (select: HTMLSelectElement) => {
    const vector = vectorNamed(select.value);
    if (vector) play.addVector(vector);
    select.value = "";
  };
  const back = focusing(".headline", play.showLanding);
  const title = "Shows the saved answers again, and clears what is set";
  return (
    <section class="panel stack steering" aria-label="Steering">
      <h2>Steering</h2>
      {controls.length === 0 && <p class="muted">No vector yet. Add one to see what it changes.</p>}
      <Each of={controls} row={(control) => <ControlCard key={control.id} control={control} />} />
      <div class="row">
        <select aria-label="Add a vector" value="" onChange={(event) => add(event.currentTarget)}>
          <option value="">{vectors.value !== null && free.length === 0 ? none : "Add a vector"}</option>
          <Each of={free} row={({ name }) => <option key={name}>{name}</option>} />
        </select>
        <Button label="Make a new one" kind="quiet" onClick={() => open("make")} />
        <Button label="Saved answers" kind="quiet" title={title} onClick={back} />
      </div>
      {controls.length > 0 && (
        <label class="field">
          <span class="row between">
            Overall strength <output class="number">× {plain(overall, 2)}</output>
          </span>
          <Slider max={2} step={0.05} value={overall} onMove={turn} onChange={play.run} />
        </label>
      )}
    </section>
  );
}

function ControlCard({ control }: { control: Control }) {
  const { id, vector: name, on, strength, operation } = control;
  const vector = vectorNamed(name);
  const { overall } = draft.value;
  const poles = polesOf(name, vector);
  const facts = vector && dialFacts(vector, control, typicalNorms.value, doseBound.value, overall);
  const set = (part: Partial<Control>) => changeControl(id, part);
  const sweep = () => play.runSweep(id);
  const turn = (next: number) => set({ strength: next });
  const remove = focusing('[aria-label="Add a vector"]', () => play.removeVector(id));
  return (
    <fieldset class={`control ${on ? "" : "is-off"}`}>
      <legend class="visually-hidden">{name}</legend>
      <div class="row between head">
        <label class="row name">
          <input type="checkbox" checked={on} onChange={(event) => set({ on: event.currentTarget.checked })} />
          <strong>{name}</strong>
        </label>
        <Remove label={`Remove ${name}`} onClick={remove} />
      </div>
      {operation === "add" && facts && (
        <>
          <Dial {...facts} {...{ name, poles }} value={strength} onChange={turn} onEnd={play.run} />
          <div class="row between small">
            <span class={`word ${facts.word.startsWith("may") ? "breaks" : ""}`}>
              {facts.word}
              {facts.word === "not shown to steer" && " this way"}
            </span>
            <span class="muted">
              {overall !== 1 && (
                <span class="number">{`${signed(strength)} × ${plain(overall)} = ${signed(strength * overall)}, `}</span>
              )}
              <Term name="dose" /> <span class="number">{plain(facts.dose)}</span>
            </span>
          </div>
          {play.swept.value === id ? (
            <Sweep name={name} onPick={turn} />
          ) : (
            <Button label="Sweep the dial" kind="quiet" disabled={!play.canSweep(id)} onClick={sweep} />
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

/** The same prompt at the stops of a dial: a strip of answers, coloured by what each says. A click sets the dial. */
export function Sweep({ name, onPick }: { name: string; onPick: (strength: number) => void }) {
  const panes = play.sweep.panes.value;
  const stale = play.sweepStale.value;
  const scores = panes.map((pane) => pane.metrics?.readout[name]?.mean ?? null);
  const plainScore = scores[panes.findIndex((pane) => Number(pane.name) === 0)] ?? 0;
  const full = fullScale(scores.map((score) => (score ?? plainScore) - plainScore), 0.3); // biome-ignore format: one line
  const take = (strength: number) => {
    onPick(strength);
    play.run();
  };
  const close = focusing(`[aria-label="Dial of ${name}"]`, play.closeSweep);
  return (
    <section class="sweep" aria-label={`Sweep of ${name}`} aria-busy={play.sweep.running.value}>
      <div class="row between small">
        <span>
          {play.sweep.running.value
            ? "Writing"
            : stale
              ? "These are of other settings"
              : "A click sets the dial and runs"}
        </span>
        <Button label="Close" kind="quiet" onClick={close} />
      </div>
      <ErrorNote error={play.sweep.error.value} />
      <ol class={stale ? "stale" : ""}>
        {panes.map((pane, index) => {
          const strength = Number(pane.name);
          const away = (scores[index] ?? plainScore) - plainScore;
          return (
            <li key={pane.name}>
              <button
                type="button"
                class={`multiple ${away < 0 ? "below" : "above"}`}
                style={{ "--m": magnitude(away, full) }}
                title={`Set ${name} to ${signed(strength)}`}
                onClick={() => take(strength)}
              >
                <strong class="number small">{strength === 0 ? "plain" : signed(strength)}</strong>
                <span dir="auto">{pane.choices[0]?.text}</span>
              </button>
              {pane.error && <Note kind="error">{pane.error}</Note>}
            </li>
          );
        })}
      </ol>
    </section>
  );
}
