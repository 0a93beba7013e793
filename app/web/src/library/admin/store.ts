import { signal } from "@preact/signals";
import { api, dataOf } from "../../api/client";
import { ApiError } from "../../api/errors";
import { apiKey, setKey } from "../../api/key";
import type { Key, KeyRequest, Monitor, MonitorDetail, NewKey, Policy } from "../../api/types";

export const policy = signal<Policy | null>(null);
export const monitors = signal<readonly Monitor[]>([]);

/** The monitor whose scores are shown. */
export const opened = signal<string | null>(null);
export const detail = signal<MonitorDetail | null>(null);

export const keys = signal<readonly Key[]>([]);

/** A key that was just made: the only time that it is shown. `replaces`: the key that it takes the place of. */
export const fresh = signal<{ key: NewKey; replaces: Key | null } | null>(null);

/** What the server says to a key that may not manage it; null while the key may. */
export const refusal = signal<string | null>(null);
export const policyTrouble = signal<unknown>(null);
export const keyTrouble = signal<unknown>(null);

let refusedKey: string | null | undefined;

/** Loads policy, monitors and keys. A key that was refused once is not tried again. */
export async function loadAdmin(): Promise<void> {
  if (refusedKey === apiKey.value) return;
  refusal.value = null;
  try {
    keys.value = (await dataOf<{ data: Key[] }>(api.GET("/v1/keys"))).data;
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 403) throw error;
    refusedKey = apiKey.value;
    refusal.value = error.message;
    return;
  }
  await attempt(policyTrouble, loadPolicy);
}

/** Runs something that may fail, and shows the failure where it was asked for. Returns whether it succeeded. */
export async function attempt(trouble: { value: unknown }, work: () => Promise<unknown>): Promise<boolean> {
  trouble.value = null;
  try {
    await work();
    return true;
  } catch (error) {
    trouble.value = error;
    return false;
  }
}

/** Reads the policy. The one shown stays until the new one is there, so that what was typed in its forms is not lost. */
async function loadPolicy(): Promise<void> {
  try {
    policy.value = await dataOf<Policy>(api.GET("/v1/policy"));
  } catch (error) {
    policy.value = null;
    throw error;
  }
  await loadMonitors();
}

/** Reads the counts of all monitors, and the scores of the opened one. */
export async function loadMonitors(): Promise<void> {
  monitors.value = (await dataOf<{ data: Monitor[] }>(api.GET("/v1/monitors"))).data;
  const name = monitors.value.find((one) => one.name === opened.value)?.name;
  detail.value = name
    ? await dataOf<MonitorDetail>(api.GET("/v1/monitors/{name}", { params: { path: { name } } }))
    : null;
}

export function openMonitor(name: string | null): void {
  opened.value = name;
  detail.value = null;
  void attempt(policyTrouble, loadMonitors);
}

/** Changes the policy from what the server has now, so that the change of another person is not undone. */
export async function editPolicy(change: (now: Policy) => Policy): Promise<boolean> {
  return attempt(policyTrouble, async () => {
    const body = change(await dataOf<Policy>(api.GET("/v1/policy")));
    await api.PUT("/v1/policy", { body: body as never });
    await loadPolicy();
  });
}

/** Removes the policy, also one that the server cannot apply. */
export async function removePolicy(): Promise<void> {
  await attempt(policyTrouble, async () => {
    await api.DELETE("/v1/policy");
    await loadPolicy();
  });
}

/** Makes a key. The first key of a server closes it to everybody without one, so this tab uses it from then on. */
export async function createKey(body: KeyRequest, replaces: Key | null = null): Promise<boolean> {
  return attempt(keyTrouble, async () => {
    const first = apiKey.value === null;
    const key = await dataOf<NewKey>(api.POST("/v1/keys", { body }));
    fresh.value = { key, replaces };
    if (first) setKey(key.key);
    await loadAdmin();
  });
}

/** Makes a key with the name, the scopes and the limits of another, which still works until it is revoked. */
export async function rotateKey(key: Key): Promise<boolean> {
  const { name, scopes, limits, namespace, expires_at } = key;
  return createKey({ name, scopes, limits, namespace, expires_at } as KeyRequest, key);
}

export async function revokeKey(id: string): Promise<void> {
  await attempt(keyTrouble, async () => {
    await api.DELETE("/v1/keys/{key_id}", { params: { path: { key_id: id } } });
    if (fresh.value?.replaces?.id === id) fresh.value = { ...fresh.value, replaces: null };
    if (fresh.value?.key.id === id) fresh.value = null;
    await loadAdmin();
  });
}
