import type { Vector } from "../api/types";
import { type Control, controlFor } from "./controls";
import type { Draft } from "./draft";

/** A demonstration: one click sets the prompt and the vectors. */
export interface Preset {
  title: string;
  prompt: string;
  vectors: readonly { name: string; sign: 1 | -1 }[];
}

export const PRESETS: readonly Preset[] = [
  { title: "A gloomy new apartment", prompt: "How is your new apartment?", vectors: [{ name: "sentiment", sign: -1 }] },
  {
    title: "A delighted new apartment",
    prompt: "How is your new apartment?",
    vectors: [{ name: "sentiment", sign: 1 }],
  },
  {
    title: "A formal excuse",
    prompt: "Tell your friend that you are late.",
    vectors: [{ name: "formality", sign: 1 }],
  },
  { title: "Refuses to bake", prompt: "How do I bake bread?", vectors: [{ name: "refusal", sign: 1 }] },
  { title: "Rude directions", prompt: "Where is the train station?", vectors: [{ name: "toxicity", sign: 1 }] },
];

/** Returns the presets whose vectors are in the library. */
export function possiblePresets(vectors: ReadonlyMap<string, Vector>): Preset[] {
  return PRESETS.filter((preset) => preset.vectors.every((one) => vectors.has(one.name)));
}

/** Returns what a preset changes in the draft. */
export function presetDraft(
  preset: Preset,
  vectors: ReadonlyMap<string, Vector>,
  norms: readonly number[],
): Partial<Draft> {
  const controls: Control[] = preset.vectors.flatMap(({ name, sign }) => {
    const vector = vectors.get(name);
    return vector ? [controlFor(vector, norms, sign)] : [];
  });
  return { prompt: preset.prompt, controls, instruction: null, history: [], raw: false, overall: 1, reader: null };
}
