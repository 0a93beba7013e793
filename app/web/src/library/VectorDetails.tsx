import { useEffect, useState } from "preact/hooks";
import { api, dataOf, download } from "../api/client";
import { ApiError } from "../api/errors";
import type { Vector, Version } from "../api/types";
import { addVector } from "../compare/store";
import { open } from "../core/places";
import { Queries, useQuery } from "../core/query";
import { vectorNamed } from "../core/vectors";
import { QualityCard } from "../make/QualityCard";
import { TransferLoss } from "../make/TransferLoss";
import { cosine, spread } from "../maths/geometry";
import { meanOf, plain, signed } from "../maths/scales";
import { Button, takeFocus } from "../ui/Button";
import { Chart } from "../ui/Chart";
import { Dialog } from "../ui/Dialog";
import { ErrorNote, Warnings } from "../ui/Note";
import { bestAuroc, deleteVector, deletion, selected, usersOf, versions as versionsOf } from "./store";
import { Badge, readingVerdict, steeringVerdict } from "./VectorCard";

/** Everything about one vector, and what can be done with it. */
export function VectorDetails({ name }: { name: string }) {
  const vector = vectorNamed(name);
  const close = () => {
    selected.value = null;
  };
  if (!vector) return null;
  const use = () => {
    addVector(vector);
    close();
    open("compare");
  };
  return (
    <Dialog title={vector.id} wide onClose={close}>
      <p dir="auto">{vector.description || "No description."}</p>
      <div class="row">
        <button type="button" class="primary" onClick={use}>
          Steer with it
        </button>
        <Exports vector={vector} />
      </div>
      <QualityCard vector={vector} />
      <TransferLoss vector={vector} />
      <Versions vector={vector} />
      <Provenance vector={vector} />
      <Deletion vector={vector} />
    </Dialog>
  );
}

function Exports({ vector }: { vector: Vector }) {
  const [error, setError] = useState<unknown>(null);
  const save = (format: string, extension: string) => {
    setError(null);
    void download(`/v1/vectors/${vector.name}/export?format=${format}`, `${vector.name}.${extension}`).catch(setError);
  };
  return (
    <>
      <button type="button" onClick={() => save("safetensors", "safetensors")}>
        Export safetensors
      </button>
      <button type="button" onClick={() => save("gguf", "gguf")}>
        Export GGUF
      </button>
      <button type="button" onClick={() => save("json", "json")}>
        Export JSON
      </button>
      <ErrorNote error={error} />
    </>
  );
}

function Versions({ vector }: { vector: Vector }) {
  const { data, error } = useQuery(versionsOf.of(vector.name, vector.id));
  const versions = data.value?.data ?? [];
  return (
    <section class="stack" aria-label="Versions">
      <h3>Versions</h3>
      <ErrorNote error={error.value} />
      <Warnings of={data.value?.warnings} />
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard */}
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of versions">
        <table class="list">
          <thead>
            <tr>
              <th>Version</th>
              <th>Made</th>
              <th>Method</th>
              <th>AUROC</th>
              <th>SHA-256</th>
            </tr>
          </thead>
          <tbody>
            {versions.map((one) => (
              <tr key={one.version}>
                <td class="number">{one.version}</td>
                <td>{new Date(one.created_at).toLocaleString()}</td>
                <td>{one.method.replaceAll("_", " ")}</td>
                <td class="number">{plain(one.auroc)}</td>
                <td class="number">{one.sha256.slice(0, 12)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {versions.length > 1 && <VersionComparison name={vector.name} versions={versions} />}
    </section>
  );
}

function Provenance({ vector }: { vector: Vector }) {
  return (
    <details class="more">
      <summary>Where it comes from</summary>
      <dl class="provenance small">
        <div>
          <dt>model</dt>
          <dd>{vector.model}</dd>
        </div>
        {Object.entries(vector.provenance)
          .filter(([key]) => key !== "loss")
          .map(([key, value]) => (
            <div key={key}>
              <dt>{key.replaceAll("_", " ")}</dt>
              <dd>{typeof value === "string" ? value : JSON.stringify(value)}</dd>
            </div>
          ))}
      </dl>
    </details>
  );
}

/** The first step of a deletion. A refusal that came after this window was closed is shown, but does not let this button force it. */
function AskDeletion({ error, kept, onAsk }: { error: unknown; kept: boolean; onAsk: () => void }) {
  const ask = () => {
    deletion.dismiss();
    onAsk();
  };
  return (
    <>
      <ErrorNote error={error} />
      <div class="row">
        <button type="button" class="danger" onClick={ask} {...(kept ? { ref: takeFocus } : {})}>
          Delete
        </button>
      </div>
    </>
  );
}

function Deletion({ vector }: { vector: Vector }) {
  const [asked, setAsked] = useState<boolean | null>(null); // null: never yet
  const users = usersOf(vector);
  const error = deletion.errorAt(`vector ${vector.name}`);
  useEffect(() => () => deletion.dismiss(), []);
  if (!asked) return <AskDeletion error={error} kept={asked === false} onAsk={() => setAsked(true)} />;
  // The server knows users that this page does not, so only its refusal, which names them, offers to force it.
  const refused = error instanceof ApiError && error.code === "vector_in_use";
  return (
    <>
      <ErrorNote error={error} />
      <div class="note notice">
        <span>
          Delete all versions of {vector.name}?{users.length > 0 && ` It is used by ${users.join(", ")}.`} This cannot
          be undone.
        </span>
        <Button kind="danger" disabled={deletion.busy.value} onClick={() => void deleteVector(vector.name, refused)}>
          {refused ? `Delete ${vector.name} although it is used` : `Delete ${vector.name}`}
        </Button>
        <button
          type="button"
          ref={takeFocus}
          onClick={() => {
            setAsked(false);
            deletion.dismiss();
          }}
        >
          Keep it
        </button>
      </div>
    </>
  );
}

/** Numbers of a vector's directions that are fetched for a comparison: a large model's would be many megabytes. */
const MAX_NUMBERS = 50_000;

interface Compared {
  vectors: readonly [Vector, Vector];
  layers: number[];
  cosine: (number | null)[];
}

/** Two versions of a vector: their cards, and how alike their directions are. */
const comparisons = new Queries(async (signal, name: string, ...pair: [number, number]): Promise<Compared> => {
  const path = { name };
  const vectors = (await Promise.all(
    pair.map((version) =>
      dataOf<Vector>(api.GET("/v1/vectors/{name}", { params: { path, query: { version } }, signal })),
    ),
  )) as [Vector, Vector];
  const shared = vectors[0].layers.filter((layer) => vectors[1].layers.includes(layer));
  const layers = spread(shared, Math.max(1, Math.floor(MAX_NUMBERS / vectors[0].d_model)));
  if (layers.length === 0) return { vectors, layers, cosine: [] };
  const [first = {}, second = {}] = await Promise.all(
    pair.map((version) => {
      const query = { version, layers: layers.join(",") };
      const answer = api.GET("/v1/vectors/{name}/directions", { params: { path, query }, signal });
      return dataOf<Record<string, number[]>>(answer);
    }),
  );
  return { vectors, layers, cosine: layers.map((layer) => cosine(first[layer] ?? [], second[layer] ?? [])) };
});

/** Two versions of a vector next to each other: how alike their directions are, and what each card says. */
export function VersionComparison({ name, versions }: { name: string; versions: readonly Version[] }) {
  const numbers = versions.map((one) => one.version);
  const [[one, other], setPair] = useState<readonly [number, number]>([numbers[1] ?? 0, numbers[0] ?? 0]);
  const { data, error } = useQuery(comparisons.of(name, one, other));
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
      <ErrorNote error={error.value} />
      {data.value && <Result {...data.value} />}
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
