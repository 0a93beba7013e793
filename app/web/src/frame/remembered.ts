import { effect, type Signal, signal } from "@preact/signals";
import { keep, kept } from "../api/storage";

/**
 * Returns a signal whose value outlives a reload, and ends with the tab: what was typed and is in no address. `restored` gives the value
 * of what was kept, perhaps by another version of this page; undefined where that is none.
 */
export function remembered<T>(name: string, usual: T, restored: (before: unknown) => T | undefined): Signal<T> {
  const place = `steering-server.${name}`;
  const found = signal(parsed(kept("sessionStorage", place), restored) ?? usual);
  effect(() => keep("sessionStorage", place, found.value === usual ? null : JSON.stringify(found.value)));
  return found;
}

function parsed<T>(text: string | null, restored: (before: unknown) => T | undefined): T | undefined {
  if (text === null) return undefined;
  try {
    return restored(JSON.parse(text));
  } catch {
    return undefined;
  }
}

/** A value that is a text. */
export function textOr(before: unknown): string | undefined {
  return typeof before === "string" ? before : undefined;
}
