import { computed, signal } from "@preact/signals";

export const PLACES = ["compare", "make", "space", "read", "library"] as const;
export type PlaceName = (typeof PLACES)[number];

/** The words shown for each place. */
export const TITLES: Readonly<Record<PlaceName, string>> = {
  compare: "Compare",
  make: "Make",
  space: "Space",
  read: "Read",
  library: "Library",
};

/** The fragment of the address: `#/place?s=state`. */
const fragment = signal(typeof location === "undefined" ? "" : location.hash);

/** The place that is shown. */
export const place = computed<PlaceName>(() => parse(fragment.value).place);

/** The state in the address when the page was opened or a link was followed. */
export const addressState = computed(() => parse(fragment.value).state);

/** Splits a fragment into the place and its state; an unknown place is Compare. */
export function parse(hash: string): { place: PlaceName; state: string | null } {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  return { place: PLACES.find((known) => known === path) ?? "compare", state: new URLSearchParams(query).get("s") };
}

export function placeHref(name: PlaceName, state?: string): string {
  return `#/${name}${state ? `?s=${state}` : ""}`;
}

/** Opens a place, with a state if one is given. */
export function open(name: PlaceName, state?: string): void {
  location.hash = placeHref(name, state);
}

/** Replaces the state in the address without a step in the history. */
export function rememberState(name: PlaceName, state: string): void {
  if (place.peek() !== name) return;
  history.replaceState(null, "", placeHref(name, state));
}

if (typeof addEventListener !== "undefined")
  addEventListener("hashchange", () => {
    fragment.value = location.hash;
  });
