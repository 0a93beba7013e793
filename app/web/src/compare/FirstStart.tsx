import { mayDo } from "../core/server";
import { vectorByName } from "../core/vectors";
import { Button } from "../ui/Button";
import { ErrorNote } from "../ui/Note";
import { Progress } from "../ui/Progress";
import {
  firstDemonstration,
  leaveStarters,
  makeStarters,
  possiblePresets,
  show,
  starterError,
  starterProgress,
  startersLeft,
  stopStarters,
} from "./presets";

/** What an empty library shows: one click makes the starter vectors and runs a demonstration. It keeps its place meanwhile. */
export function FirstStart() {
  const making = starterProgress.value;
  return (
    <section class="panel stack first-start" aria-label="Starter vectors">
      <h2>Steer a language model by a concept</h2>
      <p>
        A concept vector is found from texts that differ in one thing. Added while the model writes, it moves the text
        toward the concept or away from it. The library is still empty: make the starter vectors (sentiment, formality,
        refusal and others) from the examples that come with the server. It takes a few minutes, and the first
        demonstration runs as soon as it can.
      </p>
      <ErrorNote error={starterError.value} />
      {making && <Progress {...making} onStop={stopStarters} />}
      <div class="row">
        <Button
          kind="primary"
          disabled={making !== null || !mayDo("write")}
          onClick={() => void makeStarters(firstDemonstration())}
        >
          Make the starter vectors
        </Button>
        {!mayDo("write") && <span class="small muted">The key of this tab lacks the scope write.</span>}
      </div>
    </section>
  );
}

/** How far the other starter vectors are, or why not all were made and the way to go on. */
function OtherStarters() {
  const making = starterProgress.value;
  if (making === null && !startersLeft.value) return null;
  return (
    <section class="panel stack" aria-label="Starter vectors">
      {making ? (
        <Progress {...making} onStop={stopStarters} />
      ) : (
        <>
          <ErrorNote error={starterError.value} />
          <div class="row">
            <span>Not all starter vectors were made.</span>
            <Button label="Make the others" onClick={() => void makeStarters(() => undefined)} />
            <Button label="Close" kind="quiet" onClick={leaveStarters} />
          </div>
        </>
      )}
    </section>
  );
}

/** The demonstrations that the library can run. */
export function Presets() {
  const presets = possiblePresets(vectorByName.value);
  return (
    <>
      <OtherStarters />
      {presets.length > 0 && (
        <div class="row presets">
          <span class="muted small">Try</span>
          {presets.map((preset) => (
            <Button label={preset.title} key={preset.title} onClick={() => show(preset)} />
          ))}
        </div>
      )}
    </>
  );
}
