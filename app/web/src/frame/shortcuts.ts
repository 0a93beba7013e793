import { signal } from "@preact/signals";
import { open, PLACES, place } from "./places";

/** What the shown place does on the keys that every place shares. */
export interface PlaceActions {
  run?: () => void;
  stop?: () => void;
  reroll?: () => void;
}

let actions: PlaceActions = {};

/** Whether the list of keys is shown. */
export const helpShown = signal(false);

export const KEYS: readonly (readonly [string, string])[] = [
  ["1 – 5", "Open Compare, Make, Space, Read, Library"],
  ["Ctrl + Enter", "Run"],
  ["Esc", "Stop what is running, or close a window"],
  ["R", "Run again with a new seed"],
  ["?", "Show these keys"],
];

/** Says what the shown place does; returns the function that takes it back. */
export function useActions(given: PlaceActions): () => void {
  actions = given;
  return () => {
    if (actions === given) actions = {};
  };
}

/** Handles a key press anywhere on the page. Letters and digits count only outside text fields. */
export function onKey(event: KeyboardEvent): void {
  if (document.querySelector("dialog[open]")) return; // nothing happens behind a window
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!event.repeat) actions.run?.(); // a key that is held asks once
    return;
  }
  if (event.key === "Escape") actions.stop?.();
  if (event.ctrlKey || event.metaKey || event.altKey || writes(event.target)) return;
  const index = Number(event.key) - 1;
  const target = PLACES[index];
  if (target && target !== place.value) open(target);
  else if (event.key.toLowerCase() === "r" && !event.repeat) actions.reroll?.();
  else if (event.key === "?") helpShown.value = true;
}

function writes(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  if (target.matches("textarea, select, [contenteditable]")) return true;
  return target.matches("input") && !target.matches('[type="range"], [type="checkbox"], [type="radio"]');
}
