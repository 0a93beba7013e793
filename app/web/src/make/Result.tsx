import { addVector } from "../compare/store";
import { open } from "../frame/places";
import { hasRoute } from "../frame/server";
import { Button } from "../ui/Button";
import { QualityCard } from "./QualityCard";
import { TransferLoss } from "./TransferLoss";
import { TryIt } from "./TryIt";
import { made, madeVector, measure, running, show } from "./work";

/** The vector that was found: its card, a trial at three strengths, and the measurement of its strengths. */
export function Result({ name }: { name: string }) {
  const vector = madeVector.value;
  if (!vector) return <NotListed name={name} />;
  const use = () => {
    addVector(vector);
    open("compare");
  };
  return (
    <>
      <section class="panel stack" aria-label="Quality">
        <h2>{vector.id}</h2>
        <QualityCard vector={vector} />
        <TransferLoss vector={vector} />
        <div class="row">
          <button type="button" class="primary" onClick={use}>
            Steer with it
          </button>
          {!vector.quality?.dose_response && hasRoute("POST", "/v1/evaluations") && (
            <Button disabled={running.value !== null} onClick={() => void measure(name)}>
              Measure its strengths
            </Button>
          )}
          <button type="button" class="quiet" onClick={() => (made.value = null)}>
            Make another
          </button>
        </div>
      </section>
      <TryIt key={vector.id} vector={vector} />
    </>
  );
}

/** Stands for the card while the library that was read does not have the vector. */
function NotListed({ name }: { name: string }) {
  return (
    <section class="panel stack" aria-label="Quality">
      <h2>{name}</h2>
      <p class="muted">The library could not be read after this vector was stored, or the vector was deleted.</p>
      <div class="row">
        <button type="button" class="primary" onClick={() => void show(name)}>
          Read the library again
        </button>
        <button type="button" class="quiet" onClick={() => (made.value = null)}>
          Make another
        </button>
      </div>
    </section>
  );
}
