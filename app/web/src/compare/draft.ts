import { effect, signal } from "@preact/signals";
import type { Message } from "../api/client";
import { addressLink, addressState, decodeState, encodeState, place, placeHref, rememberState } from "../core/places";
import { limit } from "../core/server";
import { changing, given, isLike, likeParts, remembered } from "../core/state";
import { followLink } from "../frame/ShareLink";
import { BLANK, type Control, interventions, restoredControl } from "./controls";

/** An earlier turn of the threads: what was asked, and what each thread answered. */
type Turn = { prompt: string; answers: Readonly<Record<string, string>> };

export const ARMS = { normal: "normal", steered: "steered", prompted: "prompt-only" } as const;
const MAX_READOUTS = 8;

/** What is set before a person sets anything. */
export const USUAL = {
  prompt: "How is your new apartment?",
  system: "",
  /** What was said before the threads part. */
  history: [] as Message[],
  turns: [] as readonly Turn[],
  /** The prompt is continued as it stands, without the chat template. */
  raw: false,
  /** The instruction of the prompt-only arm; null: made from the vectors; "": no such arm. */
  instruction: null as string | null,
  controls: [] as Control[],
  overall: 1,
  sampling: { max_tokens: 64, temperature: 0.7, top_p: 1, n: 1 },
  seed: 7,
  /** The vector whose readout colours the tokens; null: the first one. */
  reader: null as string | null,
};

/** Examples of what is restored. */
const MESSAGE: Message = { role: "user", content: "" };
const TURN: Turn = { prompt: "", answers: {} };

/** Everything a person has set in Play. It is also what the address holds. */
export type Draft = typeof USUAL;
/** What is set now. The address has it while Play is open; it outlives a reload of another place, too. */
export const draft = remembered<Draft>("draft", USUAL, restoredDraft);

export const change = changing(draft);

export function changeControl(id: number, part: Partial<Control>): void {
  change({ controls: draft.value.controls.map((one) => (one.id === id ? { ...one, ...part } : one)) });
}

/** Whether something was set but the prompt. */
export function isBegun(value: Draft): boolean {
  const { controls, ...rest } = compactDraft({ ...value, prompt: USUAL.prompt }) as { controls: unknown[] };
  return controls.length + Object.keys(rest).length > 0;
}

/** Returns the part of the draft that differs from the usual, for an address. */
export function compactDraft(value: Draft): object {
  const usual = USUAL as unknown as Record<string, unknown>;
  const parts = Object.entries(value).filter(([key, one]) => JSON.stringify(usual[key]) !== JSON.stringify(one));
  const blank = BLANK as Record<string, unknown>;
  const differs = ([key, one]: [string, unknown]) => key !== "id" && blank[key] !== one;
  const controls = value.controls.map((control) => Object.fromEntries(Object.entries(control).filter(differs)));
  return { ...Object.fromEntries(parts), controls };
}

/** Completes a draft from an address; anything that is no draft gives the usual one. */
export function restoredDraft(state: unknown): Draft {
  if (typeof state !== "object" || state === null) return USUAL;
  const { controls, sampling, history, turns, ...rest } = state as Partial<Draft>;
  const list = <T>(given: readonly T[] | undefined) => (Array.isArray(given) ? (given as T[]) : []);
  return {
    ...USUAL,
    ...likeParts(rest, { ...USUAL, instruction: "", reader: "" }),
    history: list(history).filter((one) => isLike(one, MESSAGE)),
    turns: list(turns).filter((one) => isLike(one, TURN) && isLike(Object.values(one.answers), [""])),
    sampling: { ...USUAL.sampling, ...likeParts(sampling ?? {}, USUAL.sampling) },
    controls: list(controls).filter((one) => typeof one?.vector === "string").map(restoredControl), // biome-ignore format: one line
  };
}

/** Returns the address of this page that holds the whole draft. */
export const wholeAddress = (): string =>
  new URL(placeHref("compare", encodeState(compactDraft(draft.value))), location.href).href;

/** The longest state that an address holds: a longer one would break it for many programs. This tab keeps it all the same. */
const MAX_STATE = 2000;

const textOf = (value: Draft): string => JSON.stringify(compactDraft(value));

/** Returns the state of a draft for the address; empty where it is too long. */
function stateOf(value: Draft): string {
  const state = encodeState(compactDraft(value));
  return state.length > MAX_STATE ? "" : state;
}

/** The state in an address that was left before the latest change was written to any: coming back does not undo that change. */
let outdated: string | null = null;
/** The answers that came with a link, as they were saved, and the draft beside them; null where none did. */
export const linkedResults = signal<{ results: unknown; of: Draft } | null>(null);

/** Keeps the draft and the address in step. An address with a link stays until the draft changes. Returns what ends it. */
export function followAddress(): () => void {
  let written: string | null = null;
  let linked = addressLink.peek() === null ? null : textOf(draft.peek());
  let timer: ReturnType<typeof setTimeout> | undefined;
  let pending = false;
  let shown: string | null = null;
  let first = true;
  const stopReading = effect(() => {
    const state = addressState.value;
    if (place.peek() === "compare") shown = state;
    const cameBack = first && state === outdated;
    first = false;
    if (!state || state === written || cameBack) return;
    draft.value = restoredDraft(decodeState(state));
  });
  const stopLink = followLink("compare", (state) => {
    const restored = restoredDraft(state);
    linked = textOf(restored);
    draft.value = restored;
    const { results } = (state ?? {}) as { results?: unknown };
    linkedResults.value = results ? { results, of: restored } : null;
  });
  const stopWriting = effect(() => {
    const [state, text] = [stateOf(draft.value), textOf(draft.value)];
    clearTimeout(timer);
    pending = state !== shown && text !== linked;
    timer = setTimeout(() => {
      pending = false;
      if (text === linked) return;
      linked = null;
      written = state;
      outdated = null;
      rememberState("compare", state);
    }, 300);
  });
  return () => {
    clearTimeout(timer);
    outdated = pending ? shown : outdated;
    stopReading();
    stopLink();
    stopWriting();
  };
}

export interface CompareBody extends ReturnType<typeof shared> {
  prompt?: string;
  messages?: Message[];
  /** The messages of each arm, once the threads have answers of their own. */
  threads?: Record<string, Message[]>;
  arms: Arm[];
  baseline: string;
}

type Arm = { name: string; steering: unknown; system?: string };

/** Returns the vectors that are read back: the chosen reader first, then those of the controls. */
export function readersOf(value: Draft): string[] {
  const names = [value.reader, ...value.controls.map((control) => control.vector)];
  return [...new Set(names.filter((name): name is string => Boolean(name)))].slice(0, MAX_READOUTS);
}

const promptOf = (value: Draft, arm: string): { prompt: string } | { messages: Message[] } =>
  value.raw ? { prompt: value.prompt } : { messages: messagesOf(value, arm) };

/** What a thread is asked: the system prompt, what was said before, its own answers, and the new question. */
function messagesOf(value: Draft, arm: string): Message[] {
  const system: Message[] = value.system.trim() === "" ? [] : [{ role: "system", content: value.system }];
  return [...system, ...saidIn(value, arm), { role: "user", content: value.prompt }];
}

/** What was said before in a thread, with its own answers. */
export const saidIn = ({ history, turns }: Draft, arm: string): Message[] => [
  ...history,
  ...turns.flatMap(({ prompt, answers }): Message[] => [
    { role: "user", content: prompt },
    { role: "assistant", content: answers[arm] ?? answers[ARMS.normal] ?? "" },
  ]),
];

const shared = (value: Draft) => ({ ...value.sampling, seed: value.seed, readout: readersOf(value), logprobs: Math.min(5, limit("max_top_logprobs", 5)) }); // biome-ignore format: one line

/** Returns the comparison of the draft: unsteered, steered, and instructed in words. */
export function compareBody(value: Draft, instruction: string): CompareBody {
  const arms: Arm[] = [{ name: ARMS.normal, steering: [] }];
  const steering = interventions(value.controls, value.overall);
  if (steering.length > 0) arms.push({ name: ARMS.steered, steering });
  if (instruction.trim() !== "" && !value.raw) {
    const system = [value.system.trim(), instruction.trim()].filter(Boolean).join("\n");
    arms.push({ name: ARMS.prompted, system, steering: [] });
  }
  const threads = Object.fromEntries(arms.map(({ name }) => [name, messagesOf(value, name)]));
  const own = value.raw || value.turns.length === 0 ? {} : { threads };
  return { ...promptOf(value, ARMS.normal), ...own, arms, baseline: ARMS.normal, ...shared(value) };
}

/** What a request of one steered answer needs: what an application sends. */
export function steeredBody(value: Draft) {
  const { max_tokens, temperature, top_p, n } = value.sampling;
  const steering = interventions(value.controls, value.overall);
  const sampling = given({ max_tokens, temperature, top_p: top_p === 1 ? null : top_p, n: n === 1 ? null : n });
  return { ...promptOf(value, ARMS.steered), steering, ...sampling, seed: value.seed };
}

/** Returns a comparison of several strengths of one vector, beside the others as they are set; 0 everywhere is the baseline. */
export function sweepBody(value: Draft, id: number, strengths: readonly number[]): CompareBody {
  const at = (strength: number) => value.controls.map((one) => (one.id === id ? { ...one, strength } : one));
  const arms = strengths.map((strength) => ({
    name: String(strength),
    steering: strength === 0 ? [] : interventions(at(strength), value.overall),
  }));
  return { ...promptOf(value, ARMS.steered), arms, baseline: "0", ...shared(value), n: 1 };
}
