import { computed, signal } from "@preact/signals";
import { places as TITLES } from "../words.json";

export type PlaceName = keyof typeof TITLES;
export const PLACES = Object.keys(TITLES) as PlaceName[];

/** The places of the rail; Read is a mode of Play, and Library and Admin stand behind icons. */
export const MAIN = ["compare", "make", "space"] as const;
/** The fragment of the address: `#/place?s=state`, or `#/place?link=id` for a state saved on the server. */
const fragment = signal(typeof location === "undefined" ? "" : location.hash);
export const place = computed<PlaceName>(() => parse(fragment.value).place);
/** The state in the address when the page was opened or a link was followed. */
export const addressState = computed(() => parse(fragment.value).state);
export const addressLink = computed(() => parse(fragment.value).link);

/** Splits a fragment into the place, its state and its link; an unknown place is Play. */
export function parse(hash: string) {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const found = new URLSearchParams(query);
  const known = PLACES.find((one) => one === path) ?? "compare";
  return { place: known, state: found.get("s"), link: found.get("link") };
}

export const placeHref = (name: PlaceName, state?: string): string => `#/${name}${state ? `?s=${state}` : ""}`;

export function open(name: PlaceName): void {
  location.hash = placeHref(name);
}

/** Replaces the state in the address without a step in the history. `place` follows a link a moment after the address. */
export function rememberState(name: PlaceName, state: string): void {
  if (place.peek() !== name || parse(location.hash).place !== name) return;
  history.replaceState(null, "", placeHref(name, state));
  fragment.value = location.hash; // so that following the previous link again is a change
}

if (typeof addEventListener !== "undefined") addEventListener("hashchange", () => (fragment.value = location.hash));

/** Encodes a JSON value for an address. */
export function encodeState(value: unknown): string {
  const bytes = new TextEncoder().encode(JSON.stringify(value));
  const binary = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** Decodes what `encodeState` wrote; null for anything else. */
export function decodeState(text: string): unknown {
  try {
    const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (c) => c.charCodeAt(0));
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    return null;
  }
}
