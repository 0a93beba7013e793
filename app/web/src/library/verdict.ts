import type { Vector } from "../api/types";
import { atChance } from "../compare/reasons";

export interface Verdict {
  text: string;
  kind: "good" | "unmeasured" | "bad";
}

/** Says in words how well a vector reads its concept. */
export function readingVerdict(vector: Vector): Verdict {
  const layers = vector.recommended?.layers ?? [];
  const quality = layers.map((layer) => vector.quality?.layers[String(layer)]).find(Boolean);
  if (!quality || quality.auroc == null) return { text: "reading not measured", kind: "unmeasured" };
  if (atChance(vector)) return { text: "not shown to be better than chance", kind: "bad" };
  return { text: quality.auroc >= 0.9 ? "reads well" : "reads weakly", kind: "good" };
}

/** Says in words whether the vector was shown to steer. */
export function steeringVerdict(vector: Vector): Verdict {
  const refuted = vector.quality?.warnings?.some((warning) => /^(not shown to|does not) steer/.test(warning));
  if (refuted) return { text: "not shown to steer", kind: "bad" };
  if (!vector.quality?.dose_response) return { text: "steering not measured", kind: "unmeasured" };
  const { strength, negative, basis } = vector.recommended ?? {};
  if (strength && (negative || basis !== "measured")) return { text: "steers", kind: "good" };
  if (strength) return { text: "steers one way, towards it", kind: "good" };
  return negative ? { text: "steers one way, away from it", kind: "good" } : { text: "does not steer", kind: "bad" };
}
