import { vectorByName } from "../frame/vectors";
import { ErrorNote } from "../ui/Note";
import { Progress } from "../ui/Progress";
import { firstDemonstration, show } from "./demonstration";
import { possiblePresets } from "./presets";
import { leaveStarters, makeStarters, starterError, starterProgress, startersLeft, stopStarters } from "./starters";

/** What an empty library shows: one click makes the starter vectors and runs a demonstration. */
export function FirstStart() {
  if (starterProgress.value) return <StarterProgressBar />;
  return (
    <section class="panel stack first-start" aria-label="First start">
      <h2>Steer a language model by a concept</h2>
      <p>
        A concept vector is a direction in the model's activations, found from texts that differ in one thing. Added
        while the model writes, it moves the text toward the concept or away from it. The library is still empty: make
        the starter vectors (sentiment, formality, refusal and others) from the examples that come with the server. It
        takes about a minute, and the first demonstration runs as soon as it can.
      </p>
      <ErrorNote error={starterError.value} />
      <div class="row">
        <button type="button" class="primary" onClick={() => void makeStarters(firstDemonstration())}>
          Make the starter vectors
        </button>
      </div>
    </section>
  );
}

function StarterProgressBar() {
  const now = starterProgress.value;
  if (!now) return null;
  const message = `Making ${now.concept}${now.message ? `: ${now.message}` : ""}`;
  return (
    <section class="panel" aria-label="Starter vectors">
      <Progress message={message} done={now.made} total={now.total} onStop={stopStarters} />
    </section>
  );
}

/** Why not all starter vectors were made, and the way to go on with the others. */
function LeftStarters() {
  if (!startersLeft.value || starterProgress.value) return null;
  return (
    <section class="panel stack" aria-label="Starter vectors">
      <ErrorNote error={starterError.value} />
      <div class="row">
        <span>Not all starter vectors were made.</span>
        <button type="button" onClick={() => void makeStarters(() => undefined)}>
          Make the others
        </button>
        <button type="button" class="quiet" onClick={leaveStarters}>
          Close
        </button>
      </div>
    </section>
  );
}

/** The demonstrations that the library can run. */
export function Presets() {
  const presets = possiblePresets(vectorByName.value);
  return (
    <>
      <StarterProgressBar />
      <LeftStarters />
      {presets.length > 0 && (
        <div class="row presets">
          <span class="muted small">Try</span>
          {presets.map((preset) => (
            <button type="button" key={preset.title} onClick={() => show(preset)}>
              {preset.title}
            </button>
          ))}
        </div>
      )}
    </>
  );
}
