import { effect, signal } from "@preact/signals";
import { keep, kept } from "../core/state";

type Theme = "system" | "light" | "dark";

const STORAGE = "steering-server.theme";
const ORDER: readonly Theme[] = ["system", "light", "dark"];
const before = kept("localStorage", STORAGE);
export const theme = signal<Theme>(ORDER.find((known) => known === before) ?? "system");
/** Changes whenever colours may have changed, so that canvases are drawn again. */
export const coloursChanged = signal(0);

/** Puts the chosen theme on the document, now and whenever it changes. */
export function applyTheme(): void {
  effect(() => {
    if (theme.value === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme.value;
    keep("localStorage", STORAGE, theme.value);
    forgetColours();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", forgetColours);
}

export function nextTheme(): void {
  theme.value = ORDER[(ORDER.indexOf(theme.value) + 1) % ORDER.length] ?? "system";
}

const known = new Map<string, string>();

function forgetColours(): void {
  known.clear();
  coloursChanged.value = coloursChanged.peek() + 1;
}

/** Returns the colour a custom property stands for, as a canvas understands it. */
export function colour(name: string): string {
  const before = known.get(name);
  if (before !== undefined) return before;
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  known.set(name, value);
  return value;
}

/** Calls something with the seconds since now in each frame until it returns true. Returns what ends it. */
export function inFrames(draw: (seconds: number) => boolean): () => void {
  const begun = performance.now();
  let frame = requestAnimationFrame(function next(now) {
    if (!draw(Math.max(now - begun, 0) / 1000)) frame = requestAnimationFrame(next); // the frame may have begun before
  });
  return () => cancelAnimationFrame(frame);
}

export const reducedMotion = (): boolean => matchMedia("(prefers-reduced-motion: reduce)").matches;
