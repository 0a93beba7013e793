import { computed, signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import type { Job, Profile, Vector } from "../api/types";
import type { Intervention } from "../compare/controls";
import { hasRoute } from "../frame/server";
import { loadVectors, vectors } from "../frame/vectors";

export const search = signal("");
export const selected = signal<string | null>(null);
export const profiles = signal<readonly Profile[]>([]);
export const defaultSteering = signal<readonly Intervention[] | null>(null);
export const jobs = signal<readonly Job[]>([]);
export const trouble = signal<unknown>(null);

/** The vectors whose name, description or tags contain the search. */
export const found = computed<readonly Vector[]>(() => {
  const text = search.value.trim().toLowerCase();
  const all = vectors.value ?? [];
  if (text === "") return all;
  return all.filter((vector) =>
    [vector.name, vector.description, ...vector.tags].some((one) => one.toLowerCase().includes(text)),
  );
});

/** Runs something that may fail and shows the failure at the top of the place. */
export async function attempt(work: () => Promise<unknown>): Promise<void> {
  trouble.value = null;
  try {
    await work();
  } catch (error) {
    trouble.value = error;
  }
}

/** Loads profiles, the default steering and the latest jobs. */
export async function loadLibrary(): Promise<void> {
  const [profileList, steering, jobList] = await Promise.all([
    dataOf<{ data: Profile[] }>(api.GET("/v1/profiles")),
    dataOf<{ interventions: Intervention[] | null }>(api.GET("/v1/steering")),
    dataOf<{ data: Job[] }>(api.GET("/v1/jobs", { params: { query: { limit: 20 } } })),
  ]);
  profiles.value = profileList.data;
  defaultSteering.value = steering.interventions;
  jobs.value = jobList.data;
}

/** The profiles and the default steering that use a vector. */
export function usersOf(name: string): string[] {
  const uses = (list: readonly Intervention[]) => list.some((one) => one.vector.split("@")[0] === name);
  const named = profiles.value
    .filter((profile) => uses(profile.interventions as unknown as Intervention[]))
    .map((profile) => `profile ${profile.name}`);
  return uses(defaultSteering.value ?? []) ? [...named, "the default steering"] : named;
}

export async function deleteVector(name: string, force: boolean): Promise<void> {
  await api.DELETE("/v1/vectors/{name}", { params: { path: { name }, query: { force } } });
  selected.value = null;
  await Promise.all([loadVectors(), loadLibrary()]);
}

export async function deleteProfile(name: string): Promise<void> {
  await api.DELETE("/v1/profiles/{name}", { params: { path: { name } } });
  await loadLibrary();
}

export async function saveProfile(name: string, interventions: readonly Intervention[]): Promise<void> {
  await api.PUT("/v1/profiles/{name}", {
    params: { path: { name } },
    body: { interventions: interventions as never },
  });
  await loadLibrary();
}

/** Sets the steering of requests that name none; null clears it. */
export async function setDefault(interventions: readonly Intervention[] | null): Promise<void> {
  if (interventions === null) await api.DELETE("/v1/steering");
  else await api.PUT("/v1/steering", { body: { interventions: interventions as never } });
  await loadLibrary();
}

export async function cancelJob(id: string): Promise<void> {
  await api.DELETE("/v1/jobs/{job_id}", { params: { path: { job_id: id } } });
  await loadLibrary();
}

export interface Version {
  version: number;
  created_at: string;
  method: string;
  sha256: string;
  auroc: number | null;
}

/** Returns every version of a vector, newest first. */
export async function versionsOf(vector: Vector): Promise<Version[]> {
  if (hasRoute("GET", "/v1/vectors/{name}/versions")) {
    const path = `/v1/vectors/${vector.name}/versions`;
    const { data } = await dataOf<{ data: Version[] }>(api.GET(path as never, {} as never));
    return data;
  }
  const older = Array.from({ length: Math.min(vector.version, 20) }, (_, index) => vector.version - index);
  const answers = await Promise.all(
    older.map((version) =>
      dataOf<Vector>(
        api.GET("/v1/vectors/{name}", { params: { path: { name: vector.name }, query: { version } } }),
      ).catch(() => null),
    ),
  );
  return answers.filter((one) => one !== null).map((one) => ({ ...one, auroc: bestAuroc(one) }));
}

/** The AUROC at the first recommended layer, or null where it was not measured. */
export function bestAuroc(vector: Vector): number | null {
  const layer = vector.recommended?.layers?.[0];
  return layer === undefined ? null : (vector.quality?.layers[String(layer)]?.auroc ?? null);
}

export interface Similarities {
  names: string[];
  /** Mean cosine of every pair, in the order of the names. */
  cosine: (number | null)[][];
}

const MAX_MATRIX = 24;

/** Returns the mean cosine of every pair of vectors. */
export async function similarities(list: readonly Vector[]): Promise<Similarities> {
  const names = list.slice(0, MAX_MATRIX).map((vector) => vector.name);
  const rows = await Promise.all(
    names.map((name) =>
      dataOf<{ data: { id: string; mean: number | null }[] }>(
        api.GET("/v1/vectors/{name}/similar", { params: { path: { name } } }),
      ),
    ),
  );
  const cosine = rows.map((row, i) =>
    names.map((name, j) => (i === j ? 1 : (row.data.find((one) => one.id.split("@")[0] === name)?.mean ?? null))),
  );
  return { names, cosine };
}
