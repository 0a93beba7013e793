import "../styles/loss.css";
import type { Estimate, Vector } from "../api/types";
import { Badge } from "../library/VectorCard";
import { steeringVerdict } from "../library/verdict";
import { linear, plain, signed } from "../maths/scales";
import { Note } from "../ui/Note";
import { boundsOf, lossOf, lossVerdict } from "./loss";

const ROWS = [
  ["source", "in the second model"],
  ["native", "found in this model"],
  ["transferred", "carried over"],
  ["random", "random directions"],
] as const;

/** The loss of a transfer: shown for a vector from another model, and for no other. */
export function TransferLoss({ vector }: { vector: Vector }) {
  const loss = lossOf(vector);
  if (loss === null) return null;
  const verdict = lossVerdict(loss);
  const { from_model, from_layer, anchors } = vector.provenance as Record<string, string | number | undefined>;
  return (
    <section class="stack" aria-label="Loss of the transfer">
      <div class="row">
        <h3>Loss of the transfer</h3>
        <Badge verdict={verdict} />
      </div>
      <p>{verdict.sentence}</p>
      {loss.warnings.map((warning) => (
        <Note key={warning} kind="notice">
          {warning}
        </Note>
      ))}
      <p class="small">AUROC on held-out pairs, with its 95 % interval, from 0 to 1; the dashed line is chance.</p>
      <ul class="loss" aria-label="AUROC on held-out pairs">
        {ROWS.map(([key, words]) => (
          <li key={key} class={key}>
            <span>{words}</span>
            <Interval estimate={loss.auroc[key]} />
            <span class="number">{numbers(loss.auroc[key])}</span>
          </li>
        ))}
      </ul>
      <p class="small muted">
        From layer {from_layer} of {from_model} to layer {vector.layers.join(", ")}. The map was fitted on {anchors}{" "}
        texts and explains {plain(100 * (loss.explained ?? 0), 0)} % of the variance of those it has not seen. Cosine
        with the direction that was found in this model: {signed(loss.cosine)}. Whether the vector steers is another
        question: {steeringVerdict(vector).text}.
      </p>
    </section>
  );
}

function numbers(estimate: Estimate | null | undefined): string {
  const bounds = boundsOf(estimate);
  if (bounds === null) return "not measured";
  return `${plain(bounds.mean)} [${plain(bounds.low)}, ${plain(bounds.high)}]`;
}

const WIDTH = 200;
const HEIGHT = 16;
const x = linear([0, 1], [4, WIDTH - 4]);

/** A point with its interval on the scale from 0 to 1. */
function Interval({ estimate }: { estimate: Estimate | null | undefined }) {
  const bounds = boundsOf(estimate);
  const middle = HEIGHT / 2;
  return (
    <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
      <line class="chance" x1={x(0.5)} x2={x(0.5)} y1={0} y2={HEIGHT} />
      {bounds && (
        <>
          <line class="interval" x1={x(bounds.low)} x2={x(bounds.high)} y1={middle} y2={middle} />
          <line class="mean" x1={x(bounds.mean)} x2={x(bounds.mean)} y1={2} y2={HEIGHT - 2} />
        </>
      )}
    </svg>
  );
}
