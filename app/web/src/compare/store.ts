import { computed, signal } from "@preact/signals";
import { csvFormatRows } from "d3-dsv";
import type { Vector } from "../api/client";
import { doseBound, limit, polesAwaited, typicalNorms, vectorByName, vectorNamed } from "../core/server";
import { fullScale } from "../maths/scales";
import { isShown, STOPS, strengthAt } from "../maths/strength";
import { guarded, words } from "../maths/text";
import { controlFor, dialFacts, headOf, instructionFor, layersOf } from "./controls";
import * as drafts from "./draft";
import { type CompareBody, change, changeControl, type Draft, draft } from "./draft";
import { allScores } from "./readback";
import { ComparisonRun, isPane, type Pane, type PaneChoice, type Shade } from "./run";

export const comparison = new ComparisonRun();
export const sweep = new ComparisonRun();
/** How the words are coloured; differences are shown as long as there is no vector to read. */
export const shade = signal<Shade>("reading");
export const sampleIndex = signal(0);
/** Whether each word of an answer is a button that shows its alternatives; else an answer is plain text. */
export const inspecting = signal(false);
/** The vector whose readout is shown. */
export const reader = computed(() => drafts.readersOf(draft.value)[0] ?? null);
/** How the words are coloured now. */
export const shownShade = computed<Shade>(() => (shade.value === "reading" && reader.value === null ? "difference" : shade.value)); // biome-ignore format: one line

const instructionOf = ({ instruction, controls }: Draft): string =>
  instruction ?? instructionFor(controls, vectorByName.value);

/** The instruction of the prompt-only arm: as written, else made from the vectors. */
export const instruction = computed(() => instructionOf(draft.value));

/** The score at which a token has its full colour, over all panes, so that they can be compared. */
export const fullReading = computed(() => fullScale(allScores.value, 0.5));

/** Whether every control is something the server can run. */
export const draftProblem = computed<string | null>(() => {
  const { controls, prompt } = draft.value;
  if (prompt === "") return "Write a prompt first.";
  const unwritten = draft.value.instruction === null && controls.length > 0 && !draft.value.raw; // the words of the poles are still to come
  if (unwritten && polesAwaited.value) return "The concepts are still being read.";
  for (const control of controls) {
    if (!control.on) continue;
    const vector = vectorNamed(control.vector);
    if (vectorByName.value.size > 0 && !vector) return `The library has no vector "${control.vector}".`;
    if (control.operation === "replace" && !control.to) return `Choose what replaces ${control.vector}.`;
    if (control.operation === "clamp" && control.low === null && control.high === null)
      return `Give ${control.vector} a lower or an upper bound.`;
    if (headOf(control) !== null && !Array.isArray(control.layers))
      return "Write the layers of the head, such as 12, 14.";
    if (vector && layersOf(control, vector).length === 0) return `Choose layers for ${control.vector}.`;
  }
  return null;
});

/** The draft of each request: a request does not distinguish the system prompt from earlier turns. */
const draftOf = new WeakMap<CompareBody, Draft>();
/** The draft with which the shown panes were asked; null before the first run. */
export const askedDraft = computed(() => (comparison.asked.value && draftOf.get(comparison.asked.value)) ?? null);

/** Whether the shown answers are of other settings than those of now. Which vector reads them does not matter. */
export const stale = computed(
  () => askedDraft.value !== null && differs(comparison, () => drafts.compareBody(draft.value, instruction.value)),
);

const unread = (body: CompareBody): string => JSON.stringify({ ...body, readout: [] });
const differs = ({ asked: { value: asked }, running }: ComparisonRun, now: () => CompareBody): boolean =>
  asked !== null && !running.value && unread(now()) !== unread(asked);

/** Answers what is set now. What is being answered already is not asked again: a dial that is released by a click on Run asks once. */
export function run(): void {
  if (draftProblem.value !== null) return;
  const body = drafts.compareBody(draft.value, instruction.value);
  if (comparison.running.value && JSON.stringify(body) === JSON.stringify(asking)) return;
  asking = body;
  sampleIndex.value = 0;
  shownRun.value = null;
  const of = draft.value;
  draftOf.set(body, of);
  void comparison.start(body).then((ended) => {
    if (!ended) return;
    const id = nextId++;
    const all = [...runs.value, { id, draft: of, asked: body, panes: comparison.panes.value, pinned: false }];
    const loose = all.filter((run) => !run.pinned);
    const gone = loose.length > MOST ? loose[0] : undefined; // the oldest that is not pinned, where there are too many
    runs.value = all.filter((run) => run !== gone);
    shownRun.value = id;
  });
}

let asking: CompareBody | null = null;

export function restoreRun({ id, draft: of, asked, panes }: Run): void {
  draft.value = of;
  draftOf.set(asked, of);
  comparison.put(asked, panes);
  sampleIndex.value = 0;
  shownRun.value = id;
}

/** What a link keeps of the answers that are shown: the texts and what was measured of them. Nothing while they are of other settings. */
export function sharedResults(): { results?: unknown } {
  const panes = comparison.panes.value.filter(({ error }) => error === null);
  if (comparison.asked.value === null || stale.value || comparison.running.value) return {};
  const results = panes.map(({ name, choices, metrics, against, steering }) => ({
    name,
    choices: choices.map(({ text, finish }) => ({ text, finish, tokens: [] })),
    steering: steering && { ...steering, record: null },
    metrics,
    against: against && { ...against, kl_per_token: [], diff: [] },
    error: null,
  }));
  return bytesOf({ ...drafts.compactDraft(draft.value), results }) > MOST_SHARED ? {} : { results };
}

/** The bytes of one link that a server takes, less a margin for numbers that it writes longer. */
const MOST_SHARED = 63_000;
/** The length of a value as JSON in ASCII, which is how the server counts: every other unit is written with six characters. */
const bytesOf = (value: object): number => JSON.stringify(value).replace(/[^\0-\x7f]/g, "......").length;

/** Shows the answers that came with a link beside its settings, word by word; anything else leaves the page without answers. */
export function showResults(results: unknown, of: Draft = draft.value): void {
  if (!Array.isArray(results) || results.length === 0 || !results.every(isPane)) return;
  const body = drafts.compareBody(of, instructionOf(of));
  draftOf.set(body, of);
  shownRun.value = null;
  const tokens = (text: string) => words(text).map((word) => ({ id: null, text: word }));
  const choices = (pane: Pane) => pane.choices.map((one) => ({ ...one, tokens: tokens(one.text) }));
  comparison.put(body, results.map((pane: Pane) => ({ ...pane, choices: choices(pane) }))); // biome-ignore format: one line
}

/** Makes another answer that of a pane: one that was continued from another word. */
export function takeAnswer(pane: string, choice: number, answer: PaneChoice): void {
  const asked = comparison.asked.value;
  const of = askedDraft.value;
  if (asked === null) return;
  const copy = { ...asked };
  if (of) draftOf.set(copy, of);
  comparison.replace(pane, choice, answer, copy);
}

export function reroll(): void {
  if (draftProblem.value !== null) return; // the seed stays that of the shown answers
  change({ seed: Math.floor(Math.random() * 1_000_000) });
  run();
}

export function stopAll(): void {
  comparison.stop();
  sweep.stop();
}

/** Adds a vector to what is steered by. One that is there already is switched on, and stays as it was set unless a side is asked for. */
export function addVector(vector: Vector, sign?: number): void {
  const known = draft.value.controls.find((control) => control.vector === vector.name);
  const added = controlFor(vector, typicalNorms.value, sign);
  const { strength, unit, operation } = added;
  if (!known) change({ controls: [...draft.value.controls, added] });
  else changeControl(known.id, { on: true, ...(sign === undefined ? {} : { strength, unit, operation }) });
}

/** The stops of the dial of a control over the sides that it has, as many as the server's arms allow. */
function sweepStrengths(id: number): number[] {
  const control = draft.value.controls.find((one) => one.id === id);
  const vector = control && vectorNamed(control.vector);
  if (!vector) return [];
  const { negative, positive } = dialFacts(vector, control, typicalNorms.value, doseBound.value);
  const shares = STOPS.map(([share]) => share);
  const all = [...shares.map((share) => -share).reverse(), 0, ...shares];
  const few = limit("max_arms", 8) >= all.length ? all : [-1, 0, 1];
  const shown = few.filter((share) => share === 0 || isShown(vector, share) !== false);
  return shown.map((share) => strengthAt(share, negative, positive));
}

/** Whether the dial of a control has stops to sweep. */
export const canSweep = (id: number): boolean => draftProblem.value === null && sweepStrengths(id).length > 1;
export const swept = signal<number | null>(null);

export function runSweep(id: number): void {
  if (!canSweep(id)) return;
  swept.value = id;
  void sweep.start(drafts.sweepBody(draft.value, id, sweepStrengths(id)));
}

/** Whether the answers of the sweep are of other settings than those of now. */
export const sweepStale = computed(() => {
  const id = swept.value;
  return id !== null && differs(sweep, () => drafts.sweepBody(draft.value, id, sweepStrengths(id)));
});

export function closeSweep(): void {
  swept.value = null;
  sweep.close();
}

/** Takes a vector out, and its sweep with it. */
export function removeVector(id: number): void {
  if (swept.value === id) closeSweep();
  change({ controls: draft.value.controls.filter((one) => one.id !== id) });
}

/** The answers that are shown as a table: what each was asked with, and what was measured of it. */
export function answerTable(): string {
  const [asked, names] = [comparison.asked.value, drafts.readersOf(draft.value)];
  const cell = (value: unknown) => String(value ?? "");
  const rows = comparison.panes.value.flatMap(({ name, choices, metrics }) => {
    const steering = JSON.stringify(asked?.arms.find((arm) => arm.name === name)?.steering ?? []);
    const measured = [metrics?.perplexity, ...names.map((vector) => metrics?.readout[vector]?.mean)].map(cell);
    return choices.map(({ text }, sample) => [name, cell(sample + 1), cell(asked?.seed), steering, guarded(text), ...measured]); // biome-ignore format: one line
  });
  return csvFormatRows([["arm", "sample", "seed", "steering", "text", "perplexity", ...names], ...rows]);
}

function closeAnswers(): void {
  comparison.close();
  shownRun.value = null;
}

export function showLanding(): void {
  closeAnswers();
  closeSweep();
  draft.value = { ...drafts.USUAL };
}

/** Goes on with the conversation: what was asked becomes an earlier turn, with the answer that each thread gave to it. A prompt that was
 * typed since stays. */
export function nextTurn(): void {
  const asked = askedDraft.value;
  if (asked === null || asked.raw) return;
  const answers = comparison.panes.value.map(({ name, choices }) => [name, (choices[sampleIndex.value] ?? choices[0])?.text ?? ""]); // biome-ignore format: one line
  const turn = { prompt: asked.prompt, answers: Object.fromEntries(answers) };
  const prompt = draft.value.prompt === asked.prompt ? "" : draft.value.prompt;
  change({ raw: false, history: asked.history, turns: [...asked.turns, turn], prompt });
  closeAnswers();
}

/** Takes the last turn back: its question stands in the box again, unless another one was typed since. */
export function previousTurn(): void {
  const { prompt, turns } = draft.value;
  const typed = prompt !== "" && prompt !== askedDraft.value?.prompt;
  if (turns.length > 0) change({ turns: turns.slice(0, -1), prompt: typed ? prompt : turns.at(-1)!.prompt });
  closeAnswers();
}

/** A run that has ended: what was set, what was asked, and the answers. */
type Run = { id: number; draft: Draft; asked: CompareBody; panes: readonly Pane[]; pinned: boolean };
/** Runs that are kept, beside those that are pinned. */
const MOST = 12;
export const runs = signal<readonly Run[]>([]);
/** The run that is shown; null once something else was asked. */
export const shownRun = signal<number | null>(null);
let nextId = 1;

export function pin(id: number): void {
  runs.value = runs.value.map((run) => (run.id === id ? { ...run, pinned: !run.pinned } : run));
}

/** The run before the one that is shown; null where there is none. */
export const runBefore = computed<Run | null>(() => {
  const at = runs.value.findIndex((run) => run.id === shownRun.value);
  return (at < 0 ? runs.value.at(-1) : runs.value[at - 1]) ?? null;
});
