import { computed, signal } from "@preact/signals";
import type { Key, Monitor, MonitorDetail, Policy, Schemas } from "../../api/client";
import { ApiError, api, apiKey, dataOf, isRefusal, setKey } from "../../api/client";
import { Mutations, Query } from "../../core/query";
import { capabilities } from "../../core/server";
import { plain } from "../../maths/scales";
import { without as withoutScope } from "../../words.json";

/** Whether an error says that there is a policy which the server cannot apply. */
export const isBroken = (error: unknown): boolean => error instanceof ApiError && error.code === "policy_invalid";
const goneOrRefused = (error: unknown) => isRefusal(error) || isBroken(error);
export const policy = new Query((signal) => dataOf<Policy>(api.GET("/v1/policy", { signal })), goneOrRefused);
/** The monitor whose scores are shown. */
export const opened = signal<string | null>(null);

/** The counts of all monitors, and the scores of the one that was opened when they were read. */
export const counts = new Query(async () => {
  const monitors = (await dataOf<{ data: Monitor[] }>(api.GET("/v1/monitors"))).data;
  const name = monitors.find((one) => one.name === opened.value)?.name;
  const detail = name ? await dataOf<MonitorDetail>(api.GET("/v1/monitors/{name}", { params: { path: { name } } })) : null; // biome-ignore format: one line
  return { monitors, detail };
}, goneOrRefused);

export const monitors = computed(() => counts.data.value?.monitors ?? []);

/** The scores of the opened monitor, never those of another one. */
export const detail = computed(() => {
  const found = counts.data.value?.detail ?? null;
  return found?.name === opened.value ? found : null;
});

/** The refusal of a key that may not manage the server: such a key is not tried again. */
let refused: { key: string | null; error: ApiError } | null = null;

export const keys = new Query<Schemas["KeyList"]>(async () => {
  const key = apiKey.value;
  if (refused !== null && refused.key === key) throw refused.error;
  try {
    return await dataOf<Schemas["KeyList"]>(api.GET("/v1/keys"));
  } catch (error) {
    if (error instanceof ApiError && error.status === 403 && key === apiKey.value) refused = { key, error };
    throw error;
  }
});

/** What the server says to a key that may not manage it; null while the key may. */
export const refusal = computed(() => {
  const error = keys.error.value;
  return error instanceof ApiError && error.status === 403 ? error.message : null;
});

/** A key that was just made. `replaces`: the key that it takes the place of. */
export type FreshKey = { key: Schemas["NewKeyAnswer"]; replaces: Key | null };
/** The keys that were made here, newest first. Each is shown this once, so it stays until a person has noted it down. */
export const fresh = signal<readonly FreshKey[]>([]);
/** All changes of the policy, from both panels: each begins with what the one before has left. */
export const policyActions = new Mutations<PolicyPlace>();
type PolicyPlace = "mandatory" | "limits" | "removal" | "monitor table" | "monitor form";

export const keyActions = new Mutations<KeyPlace>();
type KeyPlace = "form" | `key ${string}` | `fresh ${string}`;

/** Loads keys, policy and monitors. Nothing that a former key was shown stays once the key of this tab is refused. */
export async function loadAdmin(): Promise<void> {
  const key = apiKey.value;
  await keys.load();
  if (key !== apiKey.value) return; // the load for the new key goes on
  if (!isRefusal(keys.error.value)) {
    await Promise.all([policy.load(), counts.load()]);
    return;
  }
  policy.forget();
  counts.forget();
  if (refusal.value !== null) fresh.value = []; // another person's key; one that was mistyped is no reason to lose them
}

export function openMonitor(name: string | null): void {
  opened.value = name;
  void counts.load();
}

/** Changes the policy from what the server has now, so that the change of another person is not undone. */
export const editPolicy = async (place: PolicyPlace, change: (now: Policy) => Policy): Promise<boolean> =>
  policyActions.run(place, async () => {
    const body = change(await dataOf<Policy>(api.GET("/v1/policy")));
    policy.put(await dataOf<Policy>(api.PUT("/v1/policy", { body: body as never })));
    await counts.load();
  });

type Monitors = Policy["monitors"];

export const setMonitors = (place: PolicyPlace, change: (all: Monitors) => Monitors): Promise<boolean> =>
  editPolicy(place, (now) => ({ ...now, monitors: change(now.monitors) }));

/** Removes one entry of a list by its value: what another person has put before it does not matter. */
export function without<T>(list: readonly T[], entry: T): T[] {
  const text = JSON.stringify(entry);
  const at = list.findIndex((one) => JSON.stringify(one) === text);
  return list.filter((_, index) => index !== at);
}

/** Removes the policy, also one that the server cannot apply. */
export const removePolicy = async (): Promise<boolean> =>
  policyActions.run("removal", async () => {
    await api.DELETE("/v1/policy");
    await Promise.all([policy.load(), counts.load()]);
  });

/** Makes a key. The first key of a server closes it to everybody without one, so this tab uses it from then on. */
export const createKey = (body: Schemas["CreateKeyRequest"]): Promise<boolean> =>
  keyActions.run("form", () => makeKey(body, null));

/** Makes a key with the name, the scopes and the limits of another, which still works until it is revoked. */
export async function rotateKey(key: Key): Promise<boolean> {
  const { name, scopes, limits, namespace, expires_at } = key;
  const body = { name, scopes, limits, namespace, expires_at } as Schemas["CreateKeyRequest"];
  return keyActions.run(`key ${key.id}`, () => makeKey(body, key));
}

async function makeKey(body: Schemas["CreateKeyRequest"], replaces: Key | null): Promise<void> {
  const first = apiKey.value === null;
  const key = await dataOf<Schemas["NewKeyAnswer"]>(api.POST("/v1/keys", { body }));
  fresh.value = [{ key, replaces }, ...fresh.value.filter((one) => one.key.id !== replaces?.id)];
  if (first && apiKey.value === null) setKey(key.key);
  await keys.load();
}

export const isOwnKey = (id: string): boolean =>
  id === (fresh.value.find((one) => one.key.key === apiKey.value)?.key.id ?? capabilities.value?.key?.id);

/** Whether an error says that nobody could manage the server after the change; the change can be forced then. */
export const isLastAdmin = (error: unknown): boolean => error instanceof ApiError && error.code === "last_admin_key";

/** Revokes a key. Without `force` the server refuses to lose the last one that may manage it. */
export const revokeKey = async (id: string, place: KeyPlace, force = false): Promise<boolean> =>
  keyActions.run(place, async () => {
    const query = force ? { force } : {};
    await api.DELETE("/v1/keys/{key_id}", { params: { path: { key_id: id }, query } });
    dismissKey(id);
    fresh.value = fresh.value.map((one) => (one.replaces?.id === id ? { ...one, replaces: null } : one));
    await keys.load();
  });

/** Takes a key away from the view, once it was noted down. */
export function dismissKey(id: string): void {
  fresh.value = fresh.value.filter((one) => one.key.id !== id);
}

export const SCOPES = ["generate", "read", "write", "admin"] as const;
export type Scope = (typeof SCOPES)[number];

export function limitWords({ own_steering: own = "any", vectors, max_relative_dose: dose }: Policy["limits"]): string {
  if (own === "none") return "requests may not steer";
  const what = vectors ? `with ${vectors.join(", ") || "no vector"} only` : own === "profiles" ? "" : "with any vector";
  const how = own === "profiles" ? "through profiles only" : "";
  const bound = dose ? `dose at most ${dose}` : "any dose that the server allows";
  return `requests may steer ${[how, what].filter(Boolean).join(", ")}; ${bound}`;
}

/** Says what a key may not do; null where it may do everything. */
export function mayNot({ scopes, limits }: Pick<Key, "scopes" | "limits">): string | null {
  const missing = scopes.includes("admin") ? [] : SCOPES.filter((scope) => !scopes.includes(scope));
  const { own_steering, vectors, ...rest } = limits;
  const parts = [
    missing.length > 0 && `may not ${missing.map((scope) => withoutScope[scope]).join(", ")}`,
    own_steering === "profiles" && "steers with profiles only",
    own_steering === "none" && "may not steer",
    vectors && `steers with ${vectors.join(", ") || "no vector"} only`,
    ...Object.entries(rest).map(([name, most]) => most != null && `${name.replaceAll("_", " ")}: ${most}`),
  ].filter(Boolean);
  return parts.join("; ") || null;
}

const DAY = 86_400_000;

/** Returns the time some days from now as the API takes it; null for a key that never expires. */
export const expiry = (days: number, now = Date.now()): string | null =>
  days === 0 ? null : new Date(now + days * DAY).toISOString();

export function raisedWhen({ vector, above, below, at }: Pick<Monitor, "vector" | "above" | "below" | "at">): string {
  const bound = above == null ? `below ${plain(below)}` : `above ${plain(above)}`;
  return `${vector} ${bound} in the ${at === "prompt" ? "prompt" : "answer"}`;
}

/** Returns the bars of a distribution from the first to the last that has a score; `share` is of the largest. */
export function barsOf(edges: readonly number[], counts: readonly number[]) {
  const first = counts.findIndex((count) => count > 0);
  const last = counts.findLastIndex((count) => count > 0);
  const most = Math.max(...counts);
  const [low, high] = [edges[0], edges.at(-1)];
  const bars = counts.map((count, bucket) => {
    const inside = `${plain(edges[bucket - 1])} to ${plain(edges[bucket])}`;
    const above = bucket >= edges.length ? `above ${plain(high)}` : inside;
    return { label: bucket === 0 ? `up to ${plain(low)}` : above, count, share: count / most };
  });
  return first < 0 ? [] : bars.slice(first, last + 1);
}
