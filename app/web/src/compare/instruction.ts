import type { Concept, Vector } from "../api/types";
import type { Control } from "./controls";

/** Returns an instruction in words that asks for what the vectors push toward: the prompt-only arm. */
export function instructionFor(
  controls: readonly Control[],
  vectors: ReadonlyMap<string, Vector>,
  concepts: readonly Concept[],
): string {
  const parts = controls
    .filter((control) => control.on && control.operation === "add" && control.strength !== 0)
    .map((control) => manner(control, vectors.get(control.vector.split("@")[0] ?? ""), concepts));
  if (parts.length === 0) return "";
  return `Answer in this manner: ${parts.join("; ")}.`;
}

function manner(control: Control, vector: Vector | undefined, concepts: readonly Concept[]): string {
  const concept = concepts.find((one) => one.name === (vector?.name ?? control.vector));
  if (concept) return control.strength > 0 ? concept.positive : concept.negative;
  const description = vector?.description || control.vector;
  return control.strength > 0 ? description : `the opposite of "${description}"`;
}
