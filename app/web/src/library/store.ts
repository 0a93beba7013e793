import { computed, signal } from "@preact/signals";
import type { Profile, Similar, Vector, Version, VersionPage } from "../api/client";
import { ApiError, api, dataOf } from "../api/client";
import type { Intervention } from "../compare/controls";
import { allPages, Mutations, Queries, Query } from "../core/query";
import { library, limit, mayDo, plainName, vectorByName, vectors } from "../core/server";
import { policy } from "./admin/store";

export const search = signal("");
export const selected = signal<string | null>(null);

/** The profiles, and which were left out because they are damaged. */
export const profiles = new Query((signal) =>
  allPages<Profile>((cursor) => {
    const params = { query: cursor === undefined ? {} : { cursor } } as object;
    return dataOf(api.GET("/v1/profiles", { params, signal }));
  }),
);

/** The steering of requests that name none, empty where they are unsteered; and what they are warned of. */
export const defaultSteering = new Query(async (signal) => {
  type Answer = { interventions: Intervention[] | null; warnings?: string[] };
  const { interventions, warnings = [] } = await dataOf<Answer>(api.GET("/v1/steering", { signal }));
  return { interventions: interventions ?? [], warnings };
});

export const profileActions = new Mutations<"form" | "code" | "default" | `profile ${string}`>();
export const deletion = new Mutations<`vector ${string}`>();

/** The vectors whose name, description or tags contain the search. */
export const found = computed<readonly Vector[]>(() => {
  const text = search.value.trim().toLowerCase();
  const words = ({ name, description, tags }: Vector) => [name, description, ...tags].join("\n").toLowerCase();
  return (vectors.value ?? []).filter((vector) => words(vector).includes(text));
});

/** Loads profiles, the default steering and, with a key that may see it, the policy. */
export async function loadLibrary(): Promise<void> {
  await Promise.all([profiles.load(), defaultSteering.load(), mayDo("admin") ? policy.load() : null]);
}

/** What uses a vector, as far as it was read: profiles, the default steering, and the policy, which takes shared vectors. */
export function usersOf({ name, namespace }: Pick<Vector, "name" | "namespace">): string[] {
  const uses = (list: readonly { vector?: string }[]) =>
    list.some(({ vector }) => vector !== undefined && plainName(vector) === name);
  const found = (profiles.data.value?.data ?? [])
    .filter((profile) => uses(profile.interventions as unknown as Intervention[]))
    .map((profile) => `profile ${profile.name}`);
  if (uses(defaultSteering.data.value?.interventions ?? [])) found.push("the default steering");
  const { mandatory = [], monitors = [] } = policy.data.value ?? {};
  const governing = [...(mandatory as unknown as Intervention[]), ...monitors];
  if (namespace === "shared" && uses(governing)) found.push("the policy");
  return found;
}

/** Deletes all versions of a vector. Without `force` the server refuses it while something uses the vector. */
export const deleteVector = (name: string, force: boolean): Promise<boolean> =>
  deletion.run(`vector ${name}`, async () => {
    await api.DELETE("/v1/vectors/{name}", { params: { path: { name }, query: { force } } });
    if (selected.value === name) selected.value = null;
    await Promise.all([library.load(), loadLibrary()]);
  });

type ProfilePlace = Parameters<typeof profileActions.errorAt>[0];

/** Changes something, and reads again what it changes. */
const changed = (place: ProfilePlace, work: () => Promise<unknown>, query: Pick<Query<unknown>, "load">) =>
  profileActions.run(place, () => work().then(() => query.load()));

export const deleteProfile = (name: string): Promise<boolean> =>
  changed(`profile ${name}`, () => api.DELETE("/v1/profiles/{name}", { params: { path: { name } } }), profiles);

export function saveProfile(name: string, interventions: readonly Intervention[], place: ProfilePlace = "form") {
  const save = async () => {
    await profiles.load(); // the description of the one that it replaces stays
    const description = profiles.data.value?.data.find((one) => one.name === name)?.description ?? "";
    await api.PUT("/v1/profiles/{name}", { params: { path: { name } }, body: { interventions: interventions as never, description } }); // biome-ignore format: one line
  };
  return changed(place, save, profiles);
}

export const setDefault = ({ name, interventions }: Profile): Promise<boolean> =>
  changed(`profile ${name}`, () => api.PUT("/v1/steering", { body: { interventions: interventions as never } }), defaultSteering); // biome-ignore format: one line

export const clearDefault = (): Promise<boolean> =>
  changed("default", () => api.DELETE("/v1/steering"), defaultSteering);

/** Returns every version of a vector, newest first, and what is left out. `id` names the newest, so that a new one is read. */
export const versions = new Queries((signal, name: string, _id: string) =>
  allPages<Version>(async (cursor) => {
    const query = { limit: limit("max_page", 200), ...(cursor === undefined ? {} : { before: Number(cursor) }) };
    const params = { path: { name }, query };
    const page = await dataOf<VersionPage>(api.GET("/v1/vectors/{name}/versions", { params, signal }));
    return { ...page, next_cursor: page.next_before === null ? null : String(page.next_before) };
  }),
);

const MAX_MATRIX = 24;
/** The similarities of the vectors: the table of the library and the map of Space show the same. */
export const similar = new Query((_, list: readonly Vector[]) => similarities(list));

/** What was read of the vectors that are in the library, and not of those that a former key saw. */
export const shownSimilar = computed(() => {
  const found = similar.data.value;
  return found?.names.every((name) => vectorByName.value.has(name)) ? found : null;
});

export type Similarities = Awaited<ReturnType<typeof similarities>>;

/** Returns the mean cosine of every pair of vectors in the order of the names, and what was not compared. Damaged vectors are left out;
 * rejects where all are. */
export async function similarities(list: readonly Vector[]) {
  const asked = list.slice(0, MAX_MATRIX).map((vector) => vector.name);
  const similarTo = (name: string) =>
    dataOf<Similar>(api.GET("/v1/vectors/{name}/similar", { params: { path: { name } } })).catch((error: unknown) => {
      if (error instanceof ApiError && error.code === "store_corrupt") return error;
      throw error;
    });
  const answers = await Promise.all(asked.map(similarTo));
  const damaged = answers.filter((one) => one instanceof ApiError);
  const rows = answers.filter((one): one is Similar => !(one instanceof ApiError));
  if (rows.length === 0 && damaged[0]) throw damaged[0];
  const names = asked.filter((_, index) => !(answers[index] instanceof ApiError));
  const cosine: (number | null)[][] = rows.map((row, i) =>
    names.map((name, j) => (i === j ? 1 : (row.data.find((one) => plainName(one.id) === name)?.mean ?? null))),
  );
  const warnings = new Set([...rows.flatMap((row) => row.warnings ?? []), ...damaged.map((error) => error.message)]);
  return { names, cosine, warnings: [...warnings] };
}
