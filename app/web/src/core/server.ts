import { computed, effect, signal, untracked } from "@preact/signals";
import { api, apiKey, dataOf, isRefusal, keyWanted, lostConnections, messageOf } from "../api/client";
import type { Capabilities } from "../api/types";
import { keep, kept } from "./state";
import { conceptList, library } from "./vectors";

const POLL_SECONDS = 2;
const FASTEST = "steering-server.fastest";
const RELOAD_SECONDS = 3;

/** What the server can do; null until it has answered. */
export const capabilities = signal<Capabilities | null>(null);

/** Why the server cannot work now; null while it can. */
export const serverTrouble = signal<string | null>(null);

export interface Load {
  running: number;
  waiting: number;
  tokensPerSecond: number | null;
  /** The most tokens in a second that this browser has seen. */
  fastest: number | null;
}

/** What the engine does at the moment; null where the key may not see it. */
export const load = signal<Load | null>(null);

/** Median residual norms by layer, against which doses are planned. */
export const typicalNorms = computed<readonly number[]>(() => capabilities.value?.model.typical_norms ?? []);
export const layerCount = computed(() => capabilities.value?.layers ?? 0);

/** Whether the key of this tab has a scope, as far as that is known. */
export function mayDo(scope: string): boolean {
  const scopes = capabilities.value?.key?.scopes;
  return scopes === undefined || scopes.includes(scope) || scopes.includes("admin");
}
export const doseBound = computed(() => limit("dose_bound", 0.2));

export function limit(name: string, otherwise: number): number {
  const value = capabilities.value?.limits[name];
  return typeof value === "number" ? value : otherwise;
}

/** Loads what every place needs, and again when the key changes; waits while the model loads. */
export async function loadServer(): Promise<void> {
  effect(() => {
    void apiKey.value;
    untracked(() => void connect());
  });
  effect(() => {
    if (keyWanted.value) serverTrouble.value = null; // it has answered, and is not asked again before it gets a key
  });
  effect(() => {
    if (lostConnections.value > 0) untracked(() => void poll()); // at once, not at the next turn
  });
  setInterval(() => void poll(), POLL_SECONDS * 1000);
}

let newest = 0;
let retry: ReturnType<typeof setTimeout> | undefined;

/** Loads it all with the key of this tab. What an earlier attempt finds, with another key perhaps, is ignored. */
async function connect(): Promise<void> {
  const turn = ++newest;
  clearTimeout(retry);
  try {
    const found = await dataOf<Capabilities>(api.GET("/v1/capabilities"));
    if (turn !== newest) return;
    capabilities.value = found;
    serverTrouble.value = null;
    await Promise.all([library.load(), conceptList.load(), poll()]);
    if (library.error.peek() !== null) throw library.error.peek();
  } catch (error) {
    if (turn !== newest) return;
    if (isRefusal(error)) {
      library.forget();
      refused = apiKey.peek(); // it has answered, and would refuse this key again
      serverTrouble.value = null;
      return;
    }
    serverTrouble.value = messageOf(error);
    retry = setTimeout(() => void connect(), RELOAD_SECONDS * 1000);
  }
}

let fastest = Number(kept("localStorage", FASTEST)) || null;
let lastCount: { tokens: number; at: number } | null = null;
let refused: string | null | undefined;

/** The key with which the gauges are being read: a slow server is not asked again before it has answered. */
let asking: string | null | undefined;

/** Reads the engine's gauges. A key without the right to see them asks once only, and from then on whether the server is ready. */
async function poll(): Promise<void> {
  const key = apiKey.value;
  const known = capabilities.value !== null || refused === key;
  if (document.hidden || !known || keyWanted.value || asking === key) return;
  const lost = serverTrouble.value !== null;
  asking = key;
  try {
    const headers: Record<string, string> = key ? { Authorization: `Bearer ${key}` } : {};
    const response = await (refused === key ? fetch("/health/ready") : fetch("/metrics", { headers }));
    if (key !== apiKey.value) return;
    if (refused === key) {
      if (response.status < 500) found(lost);
      else serverTrouble.value = "The server is not ready.";
      return;
    }
    if (response.status === 401 || response.status === 403 || response.status === 404) refused = key;
    if (response.status < 500) found(lost); // a refusal shows, too, that it can be reached
    load.value = response.ok ? loadOf(gauges(await response.text())) : null;
  } catch (error) {
    load.value = null;
    serverTrouble.value = messageOf(error);
  } finally {
    if (asking === key) asking = undefined;
  }
}

let finding = false;

/** Takes note of an answer. A server that was lost may load its model still, and may have another one and other vectors now. */
function found(lost: boolean): void {
  if (!lost) serverTrouble.value = null;
  if (!lost || finding) return;
  finding = true;
  void connect().finally(() => (finding = false));
}

function loadOf(values: ReadonlyMap<string, number>): Load {
  const tokens = values.get("steering_generated_tokens_total");
  const at = performance.now();
  let rate: number | null = null;
  if (tokens !== undefined) {
    if (lastCount && at > lastCount.at) rate = (Math.max(0, tokens - lastCount.tokens) / (at - lastCount.at)) * 1000;
    lastCount = { tokens, at };
  }
  if (rate && rate > (fastest ?? 0)) {
    fastest = rate;
    keep("localStorage", FASTEST, String(rate));
  }
  return {
    running: values.get("steering_engine_running") ?? 0,
    waiting: values.get("steering_engine_waiting") ?? 0,
    tokensPerSecond: rate,
    fastest,
  };
}

/** Reads the values without labels from Prometheus text. */
export function gauges(text: string): Map<string, number> {
  const found = new Map<string, number>();
  for (const line of text.split("\n")) {
    const match = /^([a-z_]+) (\S+)$/.exec(line);
    if (match?.[1] && match[2]) found.set(match[1], Number(match[2]));
  }
  return found;
}
