import type { Vector } from "../api/client";
import { polesOf } from "../core/server";
import { plain, signed } from "../maths/scales";
import { atChance, isShown, qualityOf, shownSides } from "../maths/strength";
import { Chart, endsOf } from "../ui/Chart";
import { DialView } from "../ui/Dial";
import { Warnings } from "../ui/parts";
import { selected, usersOf } from "./store";

export function VectorCard({ vector }: { vector: Vector }) {
  const users = usersOf(vector);
  return (
    <button type="button" class="card" onClick={() => (selected.value = vector.name)}>
      <span class="row between">
        <strong class="name">{vector.name}</strong>
        <span class="small muted number">v{vector.version}</span>
      </span>
      <span class="description small muted" dir="auto">
        {vector.description || vector.method.replaceAll("_", " ")}
      </span>
      <DialView poles={polesOf(vector.name, vector)} shown={shownSides(vector)} />
      <span class="row">
        <Badges vector={vector} />
      </span>
      {users.length > 0 && <span class="small muted">used by {users.join(", ")}</span>}
    </button>
  );
}

/** How well a vector reads its concept, and whether it was shown to steer. */
export const Badges = ({ vector }: { vector: Vector }) => (
  <>
    <Badge verdict={readingVerdict(vector)} /> <Badge verdict={steeringVerdict(vector)} />
  </>
);

export const Badge = ({ verdict }: { verdict: Verdict }) => <span class={`badge ${verdict.kind}`}>{verdict.text}</span>;

export type Verdict = { text: string; kind: "good" | "unmeasured" | "bad" };

function readingVerdict(vector: Vector): Verdict {
  const { auroc = null } = qualityOf(vector) ?? {};
  if (auroc === null) return { text: "reading not measured", kind: "unmeasured" };
  if (atChance(vector)) return { text: "not shown to be better than chance", kind: "bad" };
  return { text: auroc >= 0.9 ? "reads well" : "reads weakly", kind: "good" };
}

export function steeringVerdict(vector: Vector): Verdict {
  if (isShown(vector) === false) {
    const onAverage = vector.quality?.warnings?.some((warning) => warning.startsWith("not shown to steer"));
    return { text: onAverage ? "not shown to steer" : "does not steer", kind: "bad" };
  }
  if (!vector.quality?.dose_response) return { text: "steering not measured", kind: "unmeasured" };
  const { positive, negative } = shownSides(vector);
  if (positive === false) return { text: "steers one way, away from it", kind: "good" };
  return { text: negative === false ? "steers one way, towards it" : "steers", kind: "good" };
}

/** The measured evidence a vector carries, as pictures with a sentence each. */
export function QualityCard({ vector }: { vector: Vector }) {
  const { quality, layers, recommended } = vector;
  if (!quality) return <p class="muted">Nothing was measured: this vector was not made from examples here.</p>;
  const rows = layers.map((layer) => quality.layers[String(layer)]);
  const strong = rows.map((row) => row?.auroc ?? null);
  const faint = rows.map((row) => row?.random_auroc ?? null);
  const points = quality.dose_response;
  const scores = points?.map((point) => point.concept_score) ?? [];
  const random = points?.map((point) => point.random_score ?? null) ?? [];
  const isRange = (range: unknown): range is [number, number] => Array.isArray(range) && range.every((one) => typeof one === "number"); // biome-ignore format: one line
  const ranges = [recommended?.strength, recommended?.negative].filter(isRange);
  const dose = { x: points?.map((point) => point.strength ?? 0) ?? [], xLabel: "strength", ranges };
  return (
    <div class="stack">
      <div class="row">
        <Badges vector={vector} />
        <span class="small muted">
          {quality.pairs} pairs, {quality.holdout} held out
        </span>
      </div>
      <p>{sentence(vector)}</p>
      {quality.max_auroc != null && (
        <p>By the largest score over the tokens of a text the probability is {plain(quality.max_auroc)}.</p>
      )}
      <Warnings of={quality.warnings} />
      <div class="charts">
        {strong.length > 1 && strong.some((value) => value !== null) && (
          <Chart
            title="How well each layer tells the two sides apart (AUROC, 95 % interval; grey: random directions)"
            x={layers}
            xLabel="layer"
            yRange={[0.3, 1.02]}
            mark={recommended?.layers[0] ?? null}
            series={{ strong, faint, ...endsOf(rows.map((row) => row?.auroc_interval)) }}
            describe={(index) => `layer ${layers[index]}: ${plain(strong[index])}, random ${plain(faint[index])}`}
          />
        )}
        {points && (
          <>
            <Chart
              {...dose}
              title="What the texts say at each strength (shift of the score; shaded: recommended; grey: random directions)"
              series={{ strong: scores, faint: random, ...endsOf(points.map((point) => point.concept_interval)) }}
              describe={(index) => `strength ${signed(dose.x[index])}: ${signed(scores[index])}`}
            />
            <Chart
              {...dose}
              title="What it costs (perplexity against the unsteered text; 1 is no harm)"
              series={{ strong: points.map((point) => point.perplexity_ratio) }}
              describe={(index) => `strength ${signed(dose.x[index])}: ${plain(points[index]?.perplexity_ratio)} times`}
            />
          </>
        )}
      </div>
    </div>
  );
}

function sentence(vector: Vector): string {
  const { auroc = null, auroc_interval: interval } = qualityOf(vector) ?? {};
  if (auroc === null) return "How well it reads its concept could not be measured.";
  const bounds = interval ? ` [${plain(interval[0])}, ${plain(interval[1])}]` : "";
  return `At layer ${vector.recommended.layers[0]} it ranks a positive text above a negative one with probability ${plain(auroc)}${bounds}; 0.5 would be chance.`;
}
