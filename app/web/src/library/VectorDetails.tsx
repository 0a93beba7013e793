import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { ApiError, api, dataOf, download, type Vector, type Version } from "../api/client";
import { addVector } from "../compare/store";
import { open } from "../core/places";
import { Queries, useQuery } from "../core/query";
import { vectorNamed } from "../core/server";
import { TransferLoss } from "../make/TransferLoss";
import { cosine, spread } from "../maths/geometry";
import { meanOf, plain, signed } from "../maths/scales";
import { qualityOf } from "../maths/strength";
import { Chart } from "../ui/Chart";
import { ChoiceField } from "../ui/fields";
import { Button, Dialog, ErrorNote, Facts, More, Table, takeFocus, Warnings } from "../ui/parts";
import { deleteVector, deletion, selected, usersOf, versions as versionsOf } from "./store";
import { Badges, QualityCard } from "./VectorCard";

export function VectorDetails({ name }: { name: string }) {
  const vector = vectorNamed(name);
  const [problem, setProblem] = useState<unknown>(null);
  const close = () => (selected.value = null);
  const save = (format: string) => {
    setProblem(null);
    void download(`/v1/vectors/${name}/export?format=${format}`, `${name}.${format}`).catch(setProblem);
  };
  if (!vector) return null;
  const words = (value: unknown) => (typeof value === "string" ? value : JSON.stringify(value));
  const known = Object.entries({ model: vector.model, ...vector.provenance }).filter(([key]) => key !== "loss");
  const use = () => {
    addVector(vector);
    close();
    open("compare");
  };
  return (
    <Dialog title={vector.id} wide onClose={close}>
      <p dir="auto">{vector.description || "No description."}</p>
      <div class="row">
        <Button label="Steer with it" kind="primary" onClick={use} />
        {Object.entries(FORMATS).map(([format, words]) => (
          <Button key={format} label={`Export ${words}`} onClick={() => save(format)} />
        ))}
        <ErrorNote error={problem} />
      </div>
      <QualityCard vector={vector} />
      <TransferLoss vector={vector} />
      <Versions vector={vector} />
      <More summary="Where it comes from">
        <Facts of={known.map(([key, value]) => [key.replaceAll("_", " "), words(value)] as const)} />
      </More>
      <Deletion vector={vector} />
    </Dialog>
  );
}

const FORMATS = { safetensors: "safetensors", gguf: "GGUF", json: "JSON" } as const;

function Versions({ vector: { name, id } }: { vector: Vector }) {
  const { data, error } = useQuery(versionsOf.of(name, id));
  const versions = data.value?.data ?? [];
  const rows = versions.map((one) => [one.version, ...factsOf(one), plain(one.auroc), one.sha256.slice(0, 12)]);
  return (
    <section class="stack" aria-label="Versions">
      <h3>Versions</h3>
      <ErrorNote error={error.value} />
      <Warnings of={data.value?.warnings} />
      <Table label="Table of versions" head={["Version", "Made", "Method", "AUROC", "SHA-256"]} rows={rows} />
      {versions.length > 1 && <VersionComparison name={name} versions={versions} />}
    </section>
  );
}

const factsOf = ({ created_at, method }: Pick<Version, "created_at" | "method">): [string, string] => [
  new Date(created_at).toLocaleString(),
  method.replaceAll("_", " "),
];

/** Asks twice before it deletes. A refusal that came after this window was closed is shown, but does not let the first button force it:
 * only the refusal of the server, which knows users that this page does not, offers to. */
function Deletion({ vector }: { vector: Vector }) {
  const [asked, setAsked] = useState<boolean | null>(null); // null: never yet
  const users = usersOf(vector);
  const error = deletion.errorAt(`vector ${vector.name}`);
  useEffect(() => () => deletion.dismiss(), []);
  const ask = (next: boolean) => {
    deletion.dismiss();
    setAsked(next);
  };
  const refused = error instanceof ApiError && error.code === "vector_in_use";
  const label = `Delete ${vector.name}${refused ? " although it is used" : ""}`;
  const remove = () => deleteVector(vector.name, refused);
  const focus = asked === false ? { buttonRef: takeFocus } : {};
  const used = users.length > 0 ? ` It is used by ${users.join(", ")}.` : "";
  return (
    <>
      <ErrorNote error={error} />
      {asked ? (
        <div class="note notice">
          <span>{`Delete all versions of ${vector.name}?${used} This cannot be undone.`}</span>
          <Button label={label} kind="danger" disabled={deletion.busy.value} onClick={remove} />
          <Button key="keep" label="Keep it" buttonRef={takeFocus} onClick={() => ask(false)} />
        </div>
      ) : (
        <Button key="ask" label="Delete" kind="danger" {...focus} onClick={() => ask(true)} />
      )}
    </>
  );
}

/** Numbers of a vector's directions that are fetched for a comparison: a large model's would be many megabytes. */
const MAX_NUMBERS = 50_000;

/** Two versions of a vector: their cards, and how alike their directions are. */
const comparisons = new Queries(async (signal, name: string, ...pair: [number, number]) => {
  const path = { name };
  const card = (version: number) => api.GET("/v1/vectors/{name}", { params: { path, query: { version } }, signal });
  const vectors = (await Promise.all(pair.map((version) => dataOf<Vector>(card(version))))) as [Vector, Vector];
  const shared = vectors[0].layers.filter((layer) => vectors[1].layers.includes(layer));
  const layers = spread(shared, Math.max(1, Math.floor(MAX_NUMBERS / vectors[0].d_model)));
  if (layers.length === 0) return { vectors, layers, cosine: [] };
  const query = { layers: layers.join(",") };
  const numbers = (version: number) =>
    api.GET("/v1/vectors/{name}/directions", { params: { path, query: { ...query, version } }, signal });
  const [first = {}, second = {}] = await Promise.all(pair.map((version) => dataOf<Record<string, number[]>>(numbers(version)))); // biome-ignore format: one line
  return { vectors, layers, cosine: layers.map((layer) => cosine(first[layer] ?? [], second[layer] ?? [])) };
});

/** Two versions of a vector next to each other: how alike their directions are, and what each card says. */
function VersionComparison({ name, versions }: { name: string; versions: readonly Version[] }) {
  const [[left, right], setPair] = useState<[number, number]>([versions[1]?.version ?? 0, versions[0]?.version ?? 0]);
  const { data, error } = useQuery(comparisons.of(name, left, right));
  const found = data.value;
  const { vectors = [], layers = [], cosine: cosines = [] } = found ?? {};
  const facts = FACTS.map(([label, fact]) => [label, ...vectors.map(fact)]);
  const options = versions.map(({ version }) => [`${version}`, `version ${version}`] as const);
  const side = (value: number, choose: (version: number) => [number, number]) => ({
    options,
    value: `${value}`,
    onChange: (version: string) => setPair(choose(Number(version))),
  });
  return (
    <section class="stack" aria-label="Comparison of versions">
      <h3>Two versions compared</h3>
      <div class="row">
        <ChoiceField label="Version on the left" {...side(left, (version) => [version, right])} />
        <ChoiceField label="Version on the right" {...side(right, (version) => [left, version])} />
      </div>
      <ErrorNote error={error.value} />
      {found && <p>{likeness(meanOf(cosines))}</p>}
      {layers.length > 1 && (
        <div class="charts">
          <Chart
            title="Cosine of the two directions by layer"
            x={layers}
            xLabel="layer"
            yRange={[Math.min(0, ...cosines.map((value) => value ?? 0)) - 0.02, 1.02]}
            series={{ strong: cosines }}
            describe={(index) => `layer ${layers[index]}: ${signed(cosines[index])}`}
          />
        </div>
      )}
      {found && <Table label="Facts of both versions" head={["", ...vectors.map(({ id }) => id)]} rows={facts} />}
    </section>
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

const FACTS: readonly (readonly [string, (vector: Vector) => ComponentChildren])[] = [
  ["made", (vector) => factsOf(vector)[0]],
  ["method", (vector) => factsOf(vector)[1]],
  ["pairs, held out", ({ quality }) => (quality ? `${quality.pairs}, ${quality.holdout}` : "–")],
  ["recommended layers", (vector) => vector.recommended.layers.join(", ") || "–"],
  ["AUROC there", (vector) => plain(qualityOf(vector)?.auroc)],
  [
    "strengths",
    ({ recommended: { strength, strengths_to_try: tried } }) => {
      const words = (strength ?? tried)?.map((end) => plain(end)).join(" to ");
      return words ? `${words}, ${strength ? "measured" : "to try"}` : "–";
    },
  ],
  ["SHA-256", (vector) => vector.sha256.slice(0, 12)],
  ["verdict", (vector) => <Badges vector={vector} />],
];
