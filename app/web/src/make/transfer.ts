import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import type { Job, TransferRequest } from "../api/types";
import { capabilities } from "../frame/server";
import { linesOf } from "../maths/table";
import { LEAST_PAIRS, rows } from "./store";
import type { VectorFile } from "./vectorFile";
import { complete } from "./warnings";
import { makeByJob, name, nameProblem } from "./work";

/** Where the second model's direction comes from: it learns it from the pairs, or a file has its numbers. */
export type Origin = "learned" | "file";

export const OWN_PAIRS = "";

/** Anchor texts that a map needs at least. */
export const LEAST_ANCHORS = 20;

export interface TransferFields {
  origin: Origin;
  /** A starter concept, or OWN_PAIRS for the pairs that are typed. */
  concept: string;
  fromLayer: number | null;
  toLayer: number | null;
  /** One text a line; empty for those that come with the server. */
  anchors: string;
  holdout: number;
  seed: number;
  /** Whether it is measured how far the vector steers. */
  effect: boolean;
  /** The vector that this is compared with; empty for the direction that the pairs give. */
  native: string;
}

export const fields = signal<TransferFields>({
  origin: "learned",
  concept: "sentiment",
  fromLayer: null,
  toLayer: null,
  anchors: "",
  holdout: 0.3,
  seed: 0,
  effect: false,
  native: "",
});
export const file = signal<VectorFile | null>(null);

export function setFields(part: Partial<TransferFields>): void {
  fields.value = { ...fields.value, ...part };
}

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
  if (capabilities.value?.second_model === false) return "This server has no second model.";
  if (fields.value.origin === "file" && file.value === null) return "Open the file of the vector.";
  const given = linesOf(fields.value.anchors).length;
  if (given > 0 && given < LEAST_ANCHORS) return `Write at least ${LEAST_ANCHORS} anchor texts, or none.`;
  if (fields.value.concept === OWN_PAIRS && complete(rows.value).length < LEAST_PAIRS)
    return "Write at least two pairs.";
  return null;
});

/** The request of a transfer. */
export function transferBody(): TransferRequest {
  const { origin, concept, fromLayer, toLayer, anchors, holdout, seed, effect, native } = fields.value;
  const direction = origin === "file" && fromLayer !== null ? file.value?.directions.get(fromLayer) : undefined;
  const texts = linesOf(anchors);
  return {
    name: name.value,
    ...(concept === OWN_PAIRS ? { pairs: complete(rows.value) } : { concept }),
    ...(direction ? { direction: [...direction] } : {}),
    ...(fromLayer === null ? {} : { from_layer: fromLayer }),
    ...(toLayer === null ? {} : { to_layer: toLayer }),
    ...(texts.length === 0 ? {} : { anchors: texts }),
    holdout,
    seed,
    ...(effect ? { effect: native === "" ? {} : { native } } : {}),
  };
}

/** Carries the vector over. */
export async function carryOver(): Promise<void> {
  if (transferProblem.value !== null) return;
  const body = transferBody();
  await makeByJob("transfer", body.name, (options) =>
    dataOf<Job>(api.POST("/v1/vectors/transfer", { body, ...options })),
  );
}
