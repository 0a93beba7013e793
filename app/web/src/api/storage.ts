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
