/** A vector of another model, as this server or one like it exports it. */
export interface VectorFile {
  name: string;
  model: string;
  /** Its layers in order; the one to begin with is the middle recommended one. */
  layers: number[];
  begin: number;
  directions: ReadonlyMap<number, readonly number[]>;
}

interface Facts {
  name?: unknown;
  model?: unknown;
  recommended?: { layers?: unknown } | null;
}

const HEADER_AT = 8;
const FLOAT_BYTES = 4;

/** Reads an exported vector, JSON or safetensors. Throws an error that says what the file lacks. */
export function parseVectorFile(bytes: ArrayBuffer): VectorFile {
  const first = new Uint8Array(bytes.slice(0, HEADER_AT + 1));
  if (first[HEADER_AT] === 0x7b && first[0] !== 0x7b) return fromSafetensors(bytes);
  return fromJson(new TextDecoder().decode(bytes));
}

function fromJson(text: string): VectorFile {
  let value: (Facts & { directions?: unknown }) | null;
  try {
    value = JSON.parse(text) as typeof value;
  } catch {
    throw new Error("The file is neither a vector exported as JSON nor one exported as safetensors.");
  }
  const given = value?.directions;
  if (typeof given !== "object" || given === null)
    throw new Error('The file has no "directions": export the vector as JSON or safetensors.');
  const directions = Object.entries(given as Record<string, unknown>).map(([layer, numbers]) => {
    if (!Array.isArray(numbers) || !numbers.every((one) => typeof one === "number"))
      throw new Error(`Layer ${layer} of the file is not a list of numbers.`);
    return [Number(layer), numbers as number[]] as const;
  });
  return vectorOf(value ?? {}, directions);
}

function fromSafetensors(bytes: ArrayBuffer): VectorFile {
  const length = Number(new DataView(bytes).getBigUint64(0, true));
  const start = HEADER_AT + length;
  if (start > bytes.byteLength) throw new Error("The file ends inside its header.");
  const header = JSON.parse(new TextDecoder().decode(bytes.slice(HEADER_AT, start))) as Record<string, unknown>;
  const entries = (header.__metadata__ ?? {}) as { steering_vector?: string };
  const facts = JSON.parse(entries.steering_vector ?? "{}") as Facts & { labels?: { name?: unknown } };
  const directions = Object.entries(header).flatMap(([tensor, about]) => {
    const layer = /^layer\.(\d+)$/.exec(tensor)?.[1];
    return layer === undefined ? [] : [[Number(layer), numbersOf(bytes, start, tensor, about)] as const];
  });
  return vectorOf({ ...facts, name: facts.labels?.name }, directions);
}

function numbersOf(bytes: ArrayBuffer, start: number, tensor: string, about: unknown): number[] {
  const { dtype, data_offsets } = about as { dtype?: string; data_offsets?: [number, number] };
  if (dtype !== "F32" || !data_offsets) throw new Error(`${tensor} is ${dtype}; only F32 is read here.`);
  const [from, to] = data_offsets.map((offset) => start + offset) as [number, number];
  if (to > bytes.byteLength) throw new Error("The file ends inside its numbers.");
  const view = new DataView(bytes, from, to - from);
  return Array.from({ length: (to - from) / FLOAT_BYTES }, (_, index) => view.getFloat32(index * FLOAT_BYTES, true));
}

function vectorOf(facts: Facts, given: readonly (readonly [number, readonly number[]])[]): VectorFile {
  const directions = new Map([...given].sort(([one], [other]) => one - other));
  const layers = [...directions.keys()];
  const first = layers[0];
  if (first === undefined) throw new Error("The file has no direction at any layer.");
  const known = Array.isArray(facts.recommended?.layers) ? (facts.recommended.layers as unknown[]) : [];
  const recommended = known.filter((layer): layer is number => directions.has(layer as number));
  return {
    name: typeof facts.name === "string" ? facts.name : "",
    model: typeof facts.model === "string" ? facts.model : "",
    layers,
    begin: recommended[recommended.length >> 1] ?? first,
    directions,
  };
}
