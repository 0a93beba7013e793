import { effect, type Signal, signal } from "@preact/signals";

/** Returns a signal whose value outlives a reload, and ends with the tab: what was typed and is in no address. `restored` gives the value
 * of what was kept, perhaps by another version of this page; undefined where that is none. */
export function remembered<T>(name: string, usual: T, restored = like(usual)): Signal<T> {
  const place = `steering-server.${name}`;
  const text = kept("sessionStorage", place);
  let before: T | undefined;
  try {
    before = text === null ? undefined : restored(JSON.parse(text));
  } catch {
    // it was cut off
  }
  const found = signal(before ?? usual);
  effect(() => keep("sessionStorage", place, found.value === usual ? null : JSON.stringify(found.value)));
  return found;
}

/** Whether something has the kind of an example: its parts, or a list of what is like its first entry. */
export function isLike<T>(one: unknown, example: T): one is T {
  if (!Array.isArray(example)) {
    const parts = Object.entries(typeof example === "object" ? (example ?? {}) : {});
    const known = one as Record<string, unknown>;
    return one != null && typeof one === typeof example && parts.every(([name, part]) => isLike(known[name], part));
  }
  return Array.isArray(one) && (example.length === 0 || one.every((entry) => isLike(entry, example[0])));
}

/** Returns the parts that are of the kind of those of an example. An address may have been written by hand, or by another version. */
export function likeParts<T extends object>(given: object, example: T): Partial<T> {
  const kinds = new Map<string, unknown>(Object.entries(example));
  const known = ([name, one]: [string, unknown]) => kinds.has(name) && isLike(one, kinds.get(name));
  return Object.fromEntries(Object.entries(given).filter(known)) as Partial<T>;
}

const like =
  <T>(example: T) =>
  (before: unknown): T | undefined =>
    isLike(before, example) ? before : undefined;

type Area = "localStorage" | "sessionStorage";

/** Returns what this browser keeps under a name; null where it keeps nothing, or does not let the page look. */
export function kept(area: Area, name: string): string | null {
  try {
    return globalThis[area].getItem(name);
  } catch {
    return null; // storage is blocked, or there is none: the page works without it
  }
}

/** Keeps a text under a name, or forgets it, where the browser lets the page do so. */
export function keep(area: Area, name: string, text: string | null): void {
  try {
    if (text === null) globalThis[area].removeItem(name);
    else globalThis[area].setItem(name, text);
  } catch {
    // as above
  }
}

/** Returns what changes parts of an object in a signal. */
export const changing =
  <T extends object>(whole: Signal<T>) =>
  (part: Partial<T>): void => {
    whole.value = { ...whole.value, ...part };
  };

type Given<T> = { [K in keyof T]?: NonNullable<T[K]> };

/** Returns the parts that are there: those that are neither null nor undefined. */
export const given = <T extends object>(parts: T): Given<T> =>
  Object.fromEntries(Object.entries(parts).filter(([, part]) => part != null)) as Given<T>;
