import "../styles/loss.css";
import type { Estimate, Vector } from "../api/types";
import { Badge } from "../library/VectorCard";
import { steeringVerdict } from "../library/verdict";
import { linear, plain, signed } from "../maths/scales";
import { Warnings } from "../ui/Note";
import { boundsOf, effectSentence, type Loss, lossOf, lossVerdict } from "./loss";

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
      <Warnings of={loss.warnings} />
      <p class="small">AUROC on held-out pairs, with its 95 % interval, from 0 to 1; the dashed line is chance.</p>
      <Estimates label="AUROC on held-out pairs" rows={ROWS} found={loss.auroc} domain={[0, 1]} chance={0.5} />
      <Effect effect={loss.effect} />
      <p class="small muted">
        From layer {from_layer} of {from_model} to layer {vector.layers.join(", ")}. The map was fitted on {anchors}{" "}
        texts and explains {plain(100 * (loss.explained ?? 0), 0)} % of the variance of those it has not seen. Cosine
        with the direction that was found in this model: {signed(loss.cosine)}. At which strengths the vector steers is
        another question: {steeringVerdict(vector).text}.
      </p>
    </section>
  );
}

/** How far answers move with each direction, where it was measured. */
function Effect({ effect }: { effect: Loss["effect"] }) {
  if (!effect) return null;
  const ends = Object.values(effect.shift).map((one) => {
    const bounds = boundsOf(one);
    return bounds ? Math.max(Math.abs(bounds.low), Math.abs(bounds.high)) : 0;
  });
  const end = Math.max(0.1, ...ends);
  return (
    <>
      <p>{effectSentence(effect)}</p>
      <p class="small">
        Shift of the answers to {effect.prompts} neutral prompts at a relative dose of {plain(effect.relative_dose)}, as
        the unsteered model reads them, with its 95 % interval, from {signed(-end)} to {signed(end)}; the dashed line is
        no shift. {effect.native ? `Found in this model: ${effect.native}.` : ""}
      </p>
      <Estimates
        label="Shift of the answers"
        rows={ROWS.slice(1)}
        found={effect.shift}
        domain={[-end, end]}
        chance={0}
        format={signed}
      />
    </>
  );
}

interface EstimatesProps {
  label: string;
  rows: readonly (readonly [string, string])[];
  found: Record<string, Estimate | null>;
  domain: readonly [number, number];
  /** Where a direction without any meaning lies. */
  chance: number;
  format?: (value: number) => string;
}

function Estimates({ label, rows, found, domain, chance, format = plain }: EstimatesProps) {
  return (
    <ul class="loss" aria-label={label}>
      {rows.map(([key, words]) => (
        <li key={key} class={key}>
          <span>{words}</span>
          <IntervalLine bounds={boundsOf(found[key])} domain={domain} chance={chance} />
          <span class="number">{numbers(found[key], format)}</span>
        </li>
      ))}
    </ul>
  );
}

function numbers(estimate: Estimate | null | undefined, format: (value: number) => string): string {
  const bounds = boundsOf(estimate);
  if (bounds === null) return "not measured";
  return `${format(bounds.mean)} [${format(bounds.low)}, ${format(bounds.high)}]`;
}

const WIDTH = 200;
const HEIGHT = 16;

interface LineProps extends Pick<EstimatesProps, "domain" | "chance"> {
  bounds: ReturnType<typeof boundsOf>;
}

/** A point with its interval on a scale. */
function IntervalLine({ bounds, domain, chance }: LineProps) {
  const x = linear(domain, [4, WIDTH - 4]);
  const middle = HEIGHT / 2;
  return (
    <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
      <line class="chance" x1={x(chance)} x2={x(chance)} y1={0} y2={HEIGHT} />
      {bounds && (
        <>
          <line class="interval" x1={x(bounds.low)} x2={x(bounds.high)} y1={middle} y2={middle} />
          <line class="mean" x1={x(bounds.mean)} x2={x(bounds.mean)} y1={2} y2={HEIGHT - 2} />
        </>
      )}
    </svg>
  );
}
