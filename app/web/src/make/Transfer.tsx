import { computed, signal } from "@preact/signals";
import { useState } from "preact/hooks";
import type { Schemas } from "../api/client";
import { beginJob } from "../core/jobs";
import { concepts, layerCount, vectors } from "../core/server";
import { changing, given } from "../core/state";
import { linesOf } from "../maths/text";
import { Check, ChoiceField, FileButton, NumberField, named, OptionalNumber, partsIn, Segments, TextArea } from "../ui/fields"; // biome-ignore format: one line
import { ErrorNote, More } from "../ui/parts";
import { PairTable } from "./PairTable";
import { complete, LEAST_PAIRS, rows } from "./store";
import { name, nameProblem } from "./work";

const ORIGINS = { learned: "Learned from pairs", file: "From a vector file" } as const;
/** Where the second model's direction comes from: it learns it from the pairs, or a file has its numbers. */
type Origin = keyof typeof ORIGINS;

export const OWN_PAIRS = "";
const LEAST_ANCHORS = 20;

export const fields = signal({
  origin: "learned" as Origin,
  /** A starter concept, or OWN_PAIRS for the pairs that are typed. */
  concept: "sentiment",
  fromLayer: null as number | null,
  toLayer: null as number | null,
  /** One text a line; empty for those that come with the server. */
  anchors: "",
  holdout: 0.3,
  seed: 0,
  /** Whether it is measured how far the vector steers. */
  effect: false,
  /** The vector that this is compared with; empty for the direction that the pairs give. */
  native: "",
});
const file = signal<VectorFile | null>(null);

export const setFields = changing(fields);

/** Takes the vector of a file, at the layer to begin with. */
export function takeFile(found: VectorFile): void {
  file.value = found;
  setFields({ fromLayer: found.begin });
  if (name.value === "" && nameProblem(found.name) === null) name.value = found.name;
}

/** What is still missing before a vector can be carried over; null when nothing is. */
export const transferProblem = computed<string | null>(() => {
  const wrong = nameProblem(name.value);
  if (wrong !== null) return wrong;
  if (fields.value.origin === "file" && file.value === null) return "Open the file of the vector.";
  const given = linesOf(fields.value.anchors).length;
  if (given > 0 && given < LEAST_ANCHORS) return `Write at least ${LEAST_ANCHORS} anchor texts, or none.`;
  if (fields.value.concept === OWN_PAIRS && complete(rows.value).length < LEAST_PAIRS)
    return "Write at least two pairs.";
  return null;
});

export function transferBody(): Schemas["TransferRequest"] {
  const { origin, concept, fromLayer, toLayer, anchors, holdout, seed, effect, native } = fields.value;
  const direction = origin === "file" && fromLayer !== null ? file.value?.directions.get(fromLayer) : undefined;
  const texts = linesOf(anchors);
  const own = concept === OWN_PAIRS;
  const parts = {
    ...(own ? { pairs: complete(rows.value) } : { concept }),
    direction: direction && [...direction],
    from_layer: fromLayer,
    to_layer: toLayer,
    anchors: texts.length === 0 ? null : texts,
    effect: effect ? given({ native: native || null }) : null,
  };
  return { name: name.value, holdout, seed, ...given(parts) };
}

export function carryOver(): void {
  if (transferProblem.value !== null) return;
  const body = transferBody();
  beginJob({ place: "make", kind: "transfer", vector: body.name }, "/v1/vectors/transfer", body);
}

/** A vector of another model, as this server or one like it exports it. */
type VectorFile = ReturnType<typeof vectorOf>;

type Facts = { name?: unknown; model?: unknown; recommended?: { layers?: unknown } | null };

const HEADER_AT = 8;

/** Reads an exported vector, JSON or safetensors. Throws an error that says what the file lacks. */
export function parseVectorFile(bytes: ArrayBuffer): VectorFile {
  const first = new Uint8Array(bytes.slice(0, HEADER_AT + 1));
  if (first[HEADER_AT] === 0x7b && first[0] !== 0x7b) return fromSafetensors(bytes);
  let value: (Facts & { directions?: unknown }) | null;
  try {
    value = JSON.parse(new TextDecoder().decode(bytes)) as typeof value;
  } catch {
    throw new Error("The file is neither a vector exported as JSON nor one exported as safetensors.");
  }
  const given = value?.directions;
  if (typeof given !== "object" || given === null)
    throw new Error('The file has no "directions": export the vector as JSON or safetensors.');
  for (const [layer, numbers] of Object.entries(given as Record<string, unknown>))
    if (!Array.isArray(numbers) || !numbers.every((one) => typeof one === "number"))
      throw new Error(`Layer ${layer} of the file is not a list of numbers.`);
  return vectorOf(value ?? {}, Object.entries(given as Record<string, number[]>));
}

function fromSafetensors(bytes: ArrayBuffer): VectorFile {
  const start = HEADER_AT + Number(new DataView(bytes).getBigUint64(0, true));
  if (start > bytes.byteLength) throw new Error("The file ends inside its header.");
  const header = JSON.parse(new TextDecoder().decode(bytes.slice(HEADER_AT, start))) as Record<string, unknown>;
  const { steering_vector = "{}" } = (header.__metadata__ ?? {}) as { steering_vector?: string };
  const facts = JSON.parse(steering_vector) as Facts & { labels?: { name?: unknown } };
  const directions = Object.entries(header).flatMap(([tensor, about]) => {
    const layer = /^layer\.(\d+)$/.exec(tensor)?.[1];
    if (layer === undefined) return [];
    const { dtype, data_offsets: [from, to] = [0, 0] } = about as { dtype?: string; data_offsets?: [number, number] };
    if (dtype !== "F32") throw new Error(`${tensor} is ${dtype}; only F32 is read here.`);
    if (start + to > bytes.byteLength) throw new Error("The file ends inside its numbers.");
    return [[layer, [...new Float32Array(bytes.slice(start + from, start + to))]] as const]; // every browser's numbers are little-endian, as the file's
  });
  return vectorOf({ ...facts, name: facts.labels?.name }, directions);
}

/** Returns a vector with its layers in order; the one to begin with is the middle recommended one. */
function vectorOf(facts: Facts, given: readonly (readonly [string, readonly number[]])[]) {
  const sorted = given.map(([layer, numbers]) => [Number(layer), numbers] as const).sort(([a], [b]) => a - b);
  const directions = new Map(sorted);
  const layers = [...directions.keys()];
  const first = layers[0];
  if (first === undefined) throw new Error("The file has no direction at any layer.");
  const known = Array.isArray(facts.recommended?.layers) ? (facts.recommended.layers as unknown[]) : [];
  const recommended = known.filter((layer): layer is number => directions.has(layer as number));
  const text = (value: unknown) => (typeof value === "string" ? value : "");
  const begin = recommended[recommended.length >> 1] ?? first;
  return { name: text(facts.name), model: text(facts.model), layers, begin, directions };
}

/** A vector of the operator's second model, carried over to the loaded one. */
export function TransferSource() {
  const [trouble, setTrouble] = useState<unknown>(null);
  const known = file.value;
  const about = known && `${known.name || "a vector"} of ${known.model || "an unnamed model"}`;
  const take = async (chosen: File) => takeFile(parseVectorFile(await chosen.arrayBuffer()));
  const layer = {
    value: String(fields.value.fromLayer ?? known?.begin),
    onChange: (next: string) => setFields({ fromLayer: Number(next) }),
  };
  const layers = known?.layers.map((layer) => [String(layer), `layer ${layer}`] as const) ?? [];
  const field = partsIn(fields);
  const { origin, concept, effect } = fields.value;
  const from = (next: Origin) => setFields({ origin: next, fromLayer: next === "file" ? (file.value?.begin ?? null) : null }); // biome-ignore format: one line
  const pairs = concepts.value.map((one) => [one.name, `${one.name} (starter concept)`] as const);
  const natives = [["", "the direction that the pairs give in this model"], ...named(vectors.value)] as [string, string][]; // biome-ignore format: one line
  const best = { min: 0, step: 1, placeholder: "the best" };
  const last = Math.max(layerCount.value - 1, 0);
  const anchors = "Texts that both models read, one a line, 20 or more (empty: those of the server)";
  const label = origin === "file" ? "Pairs of its concept, which measure the loss" : "Pairs of the concept";
  return (
    <div class="stack">
      <Segments<Origin> label="The direction" options={ORIGINS} value={origin} onChange={from} />
      {origin === "file" && (
        <div class="stack">
          <div class="row">
            <FileButton accept=".json,.safetensors" take={take} onProblem={setTrouble}>
              Open a vector file
            </FileButton>
            <span class="small muted">{about ?? "exported as JSON or safetensors"}</span>
          </div>
          <ErrorNote error={trouble} />
          {known && <ChoiceField label="Its layer" options={layers} {...layer} />}
        </div>
      )}
      <ChoiceField label={label} options={[...pairs, [OWN_PAIRS, "my pairs"]]} {...field("concept")} />
      {concept === OWN_PAIRS && <PairTable />}
      <Check {...field("effect")}>Measure how far it steers, too</Check>
      {effect && <ChoiceField label="Compared with" options={natives} {...field("native")} />}
      <More summary="Layers, texts that both models read, and what is held out">
        <div class="fields">
          {origin === "learned" && (
            <OptionalNumber label="Layer of the second model" {...best} {...field("fromLayer")} />
          )}
          <OptionalNumber label="Layer of this model" {...best} max={last} {...field("toLayer")} />
          <NumberField label="Share held out" min={0.1} max={0.9} step={0.1} {...field("holdout")} />
          <NumberField label="Seed" min={0} max={2 ** 31} step={1} {...field("seed")} />
        </div>
        <TextArea label={anchors} rows={3} {...field("anchors")} />
      </More>
    </div>
  );
}
