import "../styles/loss.css";
import type { Estimate, Schemas, Vector } from "../api/client";
import { Badge, steeringVerdict, type Verdict } from "../library/VectorCard";
import { linear, plain, signed } from "../maths/scales";
import { Warnings } from "../ui/parts";
import { directions, hints, losses } from "../words.json";

const ROWS = Object.entries(directions);

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
      <p class="small">{hints.lossScale}</p>
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
  const end = Math.max(0.1, effect.chance ?? 0, ...ends);
  return (
    <>
      <p>{effectSentence(effect)}</p>
      <p class="small">
        Shift of the answers to {effect.prompts} neutral prompts at a relative dose of {plain(effect.relative_dose)}, as
        the unsteered model reads them, with its 95 % interval, from {signed(-end)} to {signed(end)}; the dashed line is{" "}
        {effect.chance == null ? "no shift" : `what one random direction in twenty reaches, ${signed(effect.chance)}`}.{" "}
        {effect.native ? `Found in this model: ${effect.native}.` : ""}
      </p>
      <Estimates
        label="Shift of the answers"
        rows={ROWS.slice(1).filter(([key]) => key in effect.shift)}
        found={effect.shift}
        domain={[-end, end]}
        chance={effect.chance ?? 0}
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

const WIDTH = 200;
const HEIGHT = 16;

function Estimates({ label, rows, found, domain, chance, format = plain }: EstimatesProps) {
  const x = linear(domain, [4, WIDTH - 4]);
  const line = (kind: string, from: number, to: number, y1: number, y2: number) => (
    <line class={kind} x1={x(from)} x2={x(to)} y1={y1} y2={y2} />
  );
  return (
    <ul class="loss" aria-label={label}>
      {rows.map(([key, words]) => {
        const bounds = boundsOf(found[key]);
        const numbers = bounds && `${format(bounds.mean)} [${format(bounds.low)}, ${format(bounds.high)}]`;
        return (
          <li key={key} class={key}>
            <span>{words}</span>
            <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
              {line("chance", chance, chance, 0, HEIGHT)}
              {bounds && line("interval", bounds.low, bounds.high, HEIGHT / 2, HEIGHT / 2)}
              {bounds && line("mean", bounds.mean, bounds.mean, 2, HEIGHT - 2)}
            </svg>
            <span class="number">{numbers ?? "not measured"}</span>
          </li>
        );
      })}
    </ul>
  );
}

type Loss = Pick<Schemas["TransferAnswer"], "explained" | "cosine" | "auroc" | "effect" | "warnings">;

const CHANCE = 0.5;

/** The loss that was measured when a vector was carried over from another model; null for every other vector. */
export function lossOf(vector: Vector): Loss | null {
  const loss = vector.provenance.loss as Partial<Loss> | undefined;
  return vector.method === "transferred" && loss?.auroc ? ({ warnings: [], ...loss } as Loss) : null;
}

/** Says in words what is left of the direction in the loaded model. */
export function lossVerdict({ auroc }: Pick<Loss, "auroc">): Verdict & { sentence: string } {
  const [carried, native, random] = [auroc.transferred, auroc.native, auroc.random].map(boundsOf);
  const found = () => {
    if (!carried) return "unmeasured";
    if (carried.low <= CHANCE) return "chance";
    if (random && carried.low <= random.high) return "random";
    return native && carried.high < native.low ? "less" : "same";
  };
  const [kind, text, sentence] = losses[found()] as [Verdict["kind"], string, string];
  return { kind, text, sentence };
}

/** Says in words whether the carried direction was shown to steer; null where that was not measured. */
export function effectSentence(effect: Loss["effect"]): string | null {
  if (!effect) return null;
  const carried = boundsOf(effect.shift.transferred);
  const chance = effect.chance ?? boundsOf(effect.shift.random)?.high; // an older transfer has the mean of random directions
  if (!carried) return "With the carried direction the numbers left their range.";
  if (carried.low <= 0) return "It is not shown to move what this model writes.";
  if (chance != null && carried.low <= chance)
    return "It moves what this model writes, but random directions are not shown to move it less.";
  return "It moves what this model writes, and further than random directions.";
}

type Bounds = { mean: number; low: number; high: number };

/** The mean and its interval, as numbers; an estimate without an interval is as wide as its mean. */
function boundsOf(estimate: Estimate | null | undefined): Bounds | null {
  if (estimate?.mean == null) return null;
  const [low, high] = estimate.interval ?? [];
  return { mean: estimate.mean, low: low ?? estimate.mean, high: high ?? estimate.mean };
}
