import { computed, signal } from "@preact/signals";
import type { CompareBody, Draft } from "./draft";
import type { Pane } from "./run";

/** A run that has ended: what was set, what was asked, and the answers. */
export interface Run {
  id: number;
  draft: Draft;
  asked: CompareBody;
  panes: readonly Pane[];
  pinned: boolean;
}

/** Runs that are kept, beside those that are pinned. */
const MOST = 12;

/** The runs of this tab, oldest first. */
export const runs = signal<readonly Run[]>([]);

/** The run that is shown; null once something else was asked. */
export const shownRun = signal<number | null>(null);

let nextId = 1;

/** Keeps a run. The oldest that is not pinned goes where there are too many. */
export function keepRun(draft: Draft, asked: CompareBody, panes: readonly Pane[]): void {
  const id = nextId++;
  const all = [...runs.value, { id, draft, asked, panes, pinned: false }];
  const loose = all.filter((run) => !run.pinned);
  const gone = loose.length > MOST ? loose[0] : undefined;
  runs.value = all.filter((run) => run !== gone);
  shownRun.value = id;
}

/** Pins a run, or lets it go with the others again. */
export function pin(id: number): void {
  runs.value = runs.value.map((run) => (run.id === id ? { ...run, pinned: !run.pinned } : run));
}

/** The run before the one that is shown; null where there is none. */
export const runBefore = computed<Run | null>(() => {
  const at = runs.value.findIndex((run) => run.id === shownRun.value);
  return (at < 0 ? runs.value.at(-1) : runs.value[at - 1]) ?? null;
});
