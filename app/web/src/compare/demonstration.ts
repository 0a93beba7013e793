import { place } from "../frame/places";
import { typicalNorms } from "../frame/server";
import { vectorByName } from "../frame/vectors";
import { change, draft } from "./draft";
import { type Preset, possiblePresets, presetDraft } from "./presets";
import { comparison, run } from "./store";

/** Sets a demonstration and runs it. */
export function show(preset: Preset): void {
  change(presetDraft(preset, vectorByName.value, typicalNorms.value));
  run();
}

/**
 * Returns what shows the first demonstration as soon as the library can run one. It does nothing when the user has changed or run
 * something since, or has left Compare.
 */
export function firstDemonstration(): () => void {
  const before = draft.value;
  const shown = comparison.panes.value;
  return () => {
    const [first] = possiblePresets(vectorByName.value);
    const untouched = draft.value === before && comparison.panes.value === shown && !comparison.running.value;
    if (first && untouched && place.value === "compare") show(first);
  };
}
