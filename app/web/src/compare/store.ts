import { computed, signal } from "@preact/signals";
import type { Vector } from "../api/types";
import { doseBound, limit, typicalNorms } from "../core/server";
import { vectorByName, vectorNamed } from "../core/vectors";
import { fullScale } from "../maths/scales";
import { STOPS, strengthAt, zonesOf } from "../maths/strength";
import { controlFor, instructionFor, layersOf } from "./controls";
import * as drafts from "./draft";
import { type CompareBody, change, changeControl, type Draft, draft } from "./draft";
import { allScores } from "./readback";
import { ComparisonRun, type Pane, type PaneChoice, type Shade } from "./run";
import { keepRun, type Run, shownRun } from "./runs";

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

/** The instruction of the prompt-only arm: as written, else made from the vectors. */
export const instruction = computed(
  () => draft.value.instruction ?? instructionFor(draft.value.controls, vectorByName.value),
);

/** The score at which a token has its full colour, over all panes, so that they can be compared. */
export const fullReading = computed(() => fullScale(allScores.value, 0.5));

/** Whether every control is something the server can run. */
export const draftProblem = computed<string | null>(() => {
  const { controls, prompt } = draft.value;
  if (prompt === "") return "Write a prompt first.";
  for (const control of controls) {
    if (!control.on) continue;
    const vector = vectorNamed(control.vector);
    if (vectorByName.value.size > 0 && !vector) return `The library has no vector "${control.vector}".`;
    if (control.operation === "replace" && !control.to) return `Choose what replaces ${control.vector}.`;
    if (control.operation === "clamp" && control.low === null && control.high === null)
      return `Give ${control.vector} a lower or an upper bound.`;
    if (vector && layersOf(control, vector).length === 0) return `Choose layers for ${control.vector}.`;
  }
  return null;
});

/** The draft of each request: a request does not distinguish the system prompt from earlier turns. */
const draftOf = new WeakMap<CompareBody, Draft>();

/** The draft with which the shown panes were asked; null before the first run. */
export const askedDraft = computed(() => (comparison.asked.value && draftOf.get(comparison.asked.value)) ?? null);

/** Whether the shown answers are of other settings than those of now. Which vector reads them does not matter. */
export const stale = computed(() => {
  const asked = comparison.asked.value;
  if (asked === null || askedDraft.value === null || comparison.running.value) return false;
  const now = drafts.compareBody(draft.value, instruction.value);
  return JSON.stringify({ ...now, readout: [] }) !== JSON.stringify({ ...asked, readout: [] });
});

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
  void comparison.start(body).then((ended) => ended && keepRun(of, body, comparison.panes.value));
}

let asking: CompareBody | null = null;

/** Shows a run again, with everything that was set for it. */
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
    choices: choices.map(({ text, finish }) => ({ text, finish, tokens: [{ id: null, text }] })),
    steering: steering && { ...steering, record: null },
    metrics,
    against: against && { ...against, kl_per_token: [], diff: [] },
    error: null,
  }));
  return JSON.stringify(results).length > MOST_SHARED ? {} : { results };
}

/** What a server takes of one link, less what the settings may need. */
const MOST_SHARED = 40_000;

/** Shows the answers that came with a link beside its settings; anything else leaves the page without answers. */
export function showResults(results: unknown): void {
  const panes = (Array.isArray(results) ? results : []) as Pane[];
  const whole = panes.every((pane) => typeof pane?.name === "string" && Array.isArray(pane.choices) && pane.choices.every((one) => typeof one?.text === "string" && Array.isArray(one.tokens))); // biome-ignore format: one line
  if (panes.length === 0 || !whole) return;
  const body = drafts.compareBody(draft.value, instruction.value);
  draftOf.set(body, draft.value);
  comparison.put(body, panes);
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
  change({ seed: drafts.newSeed() });
  run();
}

export function stopAll(): void {
  comparison.stop();
  sweep.stop();
}

/** Adds a vector to what is steered by. One that is there already stays as it was set, and is switched on. */
export function addVector(vector: Vector, sign = 1): void {
  const known = draft.value.controls.find((control) => control.vector === vector.name);
  if (known) {
    changeControl(known.id, { on: true });
    return;
  }
  change({ controls: [...draft.value.controls, controlFor(vector, typicalNorms.value, sign)] });
}

/** The stops of the dial of a control over both sides, as many as the server's arms allow. */
export function sweepStrengths(id: number): number[] {
  const control = draft.value.controls.find((one) => one.id === id);
  const vector = control && vectorNamed(control.vector);
  if (!vector) return [];
  const [negative, positive] = [-1, 1].map((sign) => zonesOf(vector, sign, typicalNorms.value, doseBound.value));
  const shares = STOPS.map(([share]) => share);
  const all = [...shares.map((share) => -share).reverse(), 0, ...shares];
  const few = limit("max_arms", 8) >= all.length ? all : [-1, 0, 1];
  return few.map((share) => strengthAt(share, negative!, positive!));
}

/** The control whose dial was swept. */
export const swept = signal<number | null>(null);

export function runSweep(id: number): void {
  if (draftProblem.value !== null) return;
  swept.value = id;
  void sweep.start(drafts.sweepBody(draft.value, id, sweepStrengths(id)));
}

/**
 * Goes on with the conversation: what was asked becomes an earlier turn, with the answer that each thread gave to it. A prompt that was
 * typed since stays.
 */
export function nextTurn(): void {
  const asked = askedDraft.value;
  if (asked === null || asked.raw) return;
  const answers = comparison.panes.value.map(({ name, choices }) => [name, (choices[sampleIndex.value] ?? choices[0])?.text ?? ""]); // biome-ignore format: one line
  const turn = { prompt: asked.prompt, answers: Object.fromEntries(answers) };
  const prompt = draft.value.prompt === asked.prompt ? "" : draft.value.prompt;
  change({ raw: false, history: asked.history, turns: [...asked.turns, turn], prompt });
  comparison.close();
}

/** Takes the last turn back: its question is asked again. */
export function previousTurn(): void {
  const last = draft.value.turns.at(-1);
  if (last) change({ turns: draft.value.turns.slice(0, -1), prompt: last.prompt });
  comparison.close();
}
