import { computed, signal } from "@preact/signals";
import { keep, kept } from "./storage";

const STORAGE = "steering-server.key";

/** The API key of this tab. It is kept in session storage, so that it ends with the tab. */
export const apiKey = signal<string | null>(kept("sessionStorage", STORAGE));

/** Whether the server has refused a request for want of a (valid) key. */
export const keyWanted = signal(false);

/** The answer of the server when the key lacked a scope; null while the key was enough. */
export const keyRefusal = signal<string | null>(null);

export const keyState = computed<"wanted" | "limited" | "set" | "none">(() => {
  if (keyWanted.value) return "wanted";
  if (apiKey.value === null) return "none";
  return keyRefusal.value === null ? "set" : "limited";
});

/** Sets or forgets the key. */
export function setKey(key: string | null): void {
  apiKey.value = key;
  keyWanted.value = false;
  keyRefusal.value = null;
  keep("sessionStorage", STORAGE, key);
}
