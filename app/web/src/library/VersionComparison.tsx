import { useEffect, useState } from "preact/hooks";
import { api, dataOf } from "../api/client";
import type { Vector, Version } from "../api/types";
import { cosine, spread } from "../maths/cosine";
import { meanOf, plain, signed } from "../maths/scales";
import { Chart } from "../ui/Chart";
import { ErrorNote } from "../ui/Note";
import { bestAuroc } from "./store";
import { Badge } from "./VectorCard";
import { readingVerdict, steeringVerdict } from "./verdict";

/** Numbers of a vector's directions that are fetched for a comparison: a large model's would be many megabytes. */
const MAX_NUMBERS = 50_000;

interface Compared {
  vectors: readonly [Vector, Vector];
  layers: number[];
  cosine: (number | null)[];
}

async function compared(name: string, one: number, other: number): Promise<Compared> {
  const read = (version: number) =>
    dataOf<Vector>(api.GET("/v1/vectors/{name}", { params: { path: { name }, query: { version } } }));
  const vectors = await Promise.all([read(one), read(other)]);
  const shared = vectors[0].layers.filter((layer) => vectors[1].layers.includes(layer));
  const layers = spread(shared, Math.max(1, Math.floor(MAX_NUMBERS / vectors[0].d_model)));
  const directions = await Promise.all([one, other].map((version) => directionsOf(name, version, layers)));
  const [first = {}, second = {}] = directions;
  return { vectors, layers, cosine: layers.map((layer) => cosine(first[layer] ?? [], second[layer] ?? [])) };
}

async function directionsOf(name: string, version: number, layers: readonly number[]) {
  if (layers.length === 0) return {};
  const query = { version, layers: layers.join(",") };
  return dataOf<Record<string, number[]>>(
    api.GET("/v1/vectors/{name}/directions", { params: { path: { name }, query } }),
  );
}

/** Two versions of a vector next to each other: how alike their directions are, and what each card says. */
export function VersionComparison({ name, versions }: { name: string; versions: readonly Version[] }) {
  const numbers = versions.map((one) => one.version);
  const [[one, other], setPair] = useState<readonly [number, number]>([numbers[1] ?? 0, numbers[0] ?? 0]);
  const [found, setFound] = useState<Compared | null>(null);
  const [error, setError] = useState<unknown>(null);
  useEffect(() => {
    let shown = true;
    setError(null);
    setFound(null);
    compared(name, one, other).then(
      (next) => shown && setFound(next),
      (failure) => shown && setError(failure),
    );
    return () => {
      shown = false;
    };
  }, [name, one, other]);
  return (
    <section class="stack" aria-label="Comparison of versions">
      <h3>Two versions compared</h3>
      <div class="row">
        <Choice label="Version on the left" value={one} numbers={numbers} onChange={(next) => setPair([next, other])} />
        <span>with</span>
        <Choice
          label="Version on the right"
          value={other}
          numbers={numbers}
          onChange={(next) => setPair([one, next])}
        />
      </div>
      <ErrorNote error={error} />
      {found && <Result {...found} />}
    </section>
  );
}

interface ChoiceProps {
  label: string;
  value: number;
  numbers: readonly number[];
  onChange: (value: number) => void;
}

function Choice({ label, value, numbers, onChange }: ChoiceProps) {
  return (
    <select aria-label={label} value={value} onChange={(event) => onChange(Number(event.currentTarget.value))}>
      {numbers.map((number) => (
        <option key={number} value={number}>
          version {number}
        </option>
      ))}
    </select>
  );
}

function Result({ vectors, layers, cosine: cosines }: Compared) {
  const mean = meanOf(cosines);
  return (
    <>
      <p>{likeness(mean)}</p>
      <div class="charts">
        {layers.length > 1 && (
          <Chart
            title="Cosine of the two directions by layer"
            x={layers}
            xLabel="layer"
            yRange={[Math.min(0, ...cosines.map((value) => value ?? 0)) - 0.02, 1.02]}
            series={[{ label: "cosine", values: cosines, look: "strong" }]}
            describe={(index) => `layer ${layers[index]}: ${signed(cosines[index])}`}
          />
        )}
      </div>
      <Facts vectors={vectors} />
    </>
  );
}

function Facts({ vectors }: Pick<Compared, "vectors">) {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard
    <div class="scroll" tabIndex={0} role="region" aria-label="Facts of both versions">
      <table class="list facts-of-versions">
        <thead>
          <tr>
            <td />
            {vectors.map((vector) => (
              <th key={vector.id} scope="col">
                {vector.id}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {factsOf(vectors).map(([label, ...values]) => (
            <tr key={label}>
              <th scope="row">{label}</th>
              {values.map((value, index) => (
                <td key={index} class={values[0] === values[1] ? "muted" : ""}>
                  {value}
                </td>
              ))}
            </tr>
          ))}
          <tr>
            <th scope="row">verdict</th>
            {vectors.map((vector) => (
              <td key={vector.id}>
                <Badge verdict={readingVerdict(vector)} /> <Badge verdict={steeringVerdict(vector)} />
              </td>
            ))}
          </tr>
        </tbody>
      </table>
    </div>
  );
}

const ALIKE = 0.98;
const RELATED = 0.5;

function likeness(mean: number | null): string {
  if (mean === null) return "The two versions have no layer in common.";
  const number = `mean cosine ${signed(mean)}`;
  if (mean >= ALIKE) return `Nearly the same direction (${number}).`;
  if (mean >= RELATED) return `Related, but not the same direction (${number}).`;
  return mean > -RELATED ? `Different directions (${number}).` : `Opposite directions (${number}).`;
}

function factsOf(vectors: readonly [Vector, Vector]): [string, string, string][] {
  const row = (label: string, of: (vector: Vector) => string): [string, string, string] => [
    label,
    of(vectors[0]),
    of(vectors[1]),
  ];
  return [
    row("made", (vector) => new Date(vector.created_at).toLocaleString()),
    row("method", (vector) => vector.method.replaceAll("_", " ")),
    row("pairs, held out", (vector) => (vector.quality ? `${vector.quality.pairs}, ${vector.quality.holdout}` : "–")),
    row("recommended layers", (vector) => vector.recommended.layers.join(", ") || "–"),
    row("AUROC there", (vector) => plain(bestAuroc(vector))),
    row("strengths", (vector) => rangeOf(vector.recommended.strength, vector.recommended.strengths_to_try)),
    row("SHA-256", (vector) => vector.sha256.slice(0, 12)),
  ];
}

type Range = readonly (number | null)[] | null | undefined;

function rangeOf(measured: Range, tried: Range): string {
  const words = (range: Range) => range?.map((end) => plain(end)).join(" to ");
  return measured ? `${words(measured)}, measured` : tried ? `${words(tried)}, to try` : "–";
}
