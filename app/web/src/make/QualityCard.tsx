import type { DosePoint, Vector } from "../api/types";
import { Badge, readingVerdict, steeringVerdict } from "../library/VectorCard";
import { plain, signed } from "../maths/scales";
import { Chart } from "../ui/Chart";
import { Warnings } from "../ui/Note";

/** The measured evidence a vector carries, as pictures with a sentence each. */
export function QualityCard({ vector }: { vector: Vector }) {
  const { quality } = vector;
  if (!quality) return <p class="muted">Nothing was measured: this vector was not made from examples here.</p>;
  return (
    <div class="stack">
      <div class="row">
        <Badge verdict={readingVerdict(vector)} />
        <Badge verdict={steeringVerdict(vector)} />
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
        <AurocChart vector={vector} />
        {quality.dose_response && <DoseCharts points={quality.dose_response} vector={vector} />}
      </div>
    </div>
  );
}

function sentence(vector: Vector): string {
  const layer = vector.recommended?.layers?.[0];
  const quality = layer === undefined ? undefined : vector.quality?.layers[String(layer)];
  if (layer === undefined || quality?.auroc == null) return "How well it reads its concept could not be measured.";
  const interval = quality.auroc_interval;
  const bounds = interval ? ` [${plain(interval[0])}, ${plain(interval[1])}]` : "";
  return `At layer ${layer} it ranks a positive text above a negative one with probability ${plain(quality.auroc)}${bounds}; 0.5 would be chance.`;
}

function AurocChart({ vector }: { vector: Vector }) {
  const rows = vector.layers.map((layer) => vector.quality?.layers[String(layer)]);
  const auroc = rows.map((row) => row?.auroc ?? null);
  if (auroc.length < 2 || auroc.every((value) => value === null)) return null;
  return (
    <Chart
      title="How well each layer tells the two sides apart (AUROC, 95 % interval; grey: random directions)"
      x={vector.layers}
      xLabel="layer"
      yRange={[0.3, 1.02]}
      mark={vector.recommended?.layers?.[0] ?? null}
      series={[
        { label: "low", values: rows.map((row) => row?.auroc_interval?.[0] ?? null), look: "low" },
        { label: "high", values: rows.map((row) => row?.auroc_interval?.[1] ?? null), look: "high" },
        { label: "random", values: rows.map((row) => row?.random_auroc ?? null), look: "faint" },
        { label: "AUROC", values: auroc, look: "strong" },
      ]}
      describe={(index) =>
        `layer ${vector.layers[index]}: ${plain(auroc[index])}, random ${plain(rows[index]?.random_auroc)}`
      }
    />
  );
}

function DoseCharts({ points, vector }: { points: readonly DosePoint[]; vector: Vector }) {
  const x = points.map((point) => point.strength ?? 0);
  const ranges = rangesOf(vector);
  return (
    <>
      <Chart
        title="What the texts say at each strength (shift of the score; shaded: recommended; grey: random directions)"
        x={x}
        xLabel="strength"
        ranges={ranges}
        series={[
          { label: "low", values: points.map((point) => point.concept_interval[0] ?? null), look: "low" },
          { label: "high", values: points.map((point) => point.concept_interval[1] ?? null), look: "high" },
          { label: "random", values: points.map((point) => point.random_score ?? null), look: "faint" },
          { label: "concept", values: points.map((point) => point.concept_score), look: "strong" },
        ]}
        describe={(index) => `strength ${signed(x[index])}: ${signed(points[index]?.concept_score)}`}
      />
      <Chart
        title="What it costs (perplexity against the unsteered text; 1 is no harm)"
        x={x}
        xLabel="strength"
        ranges={ranges}
        series={[{ label: "perplexity", values: points.map((point) => point.perplexity_ratio), look: "strong" }]}
        describe={(index) => `strength ${signed(x[index])}: ${plain(points[index]?.perplexity_ratio)} times`}
      />
    </>
  );
}

function rangesOf(vector: Vector): (readonly [number, number])[] {
  const recommended = vector.recommended as { strength?: unknown; negative?: unknown } | null;
  return [recommended?.strength, recommended?.negative].filter(
    (range): range is [number, number] => Array.isArray(range) && range.every((one) => typeof one === "number"),
  );
}
