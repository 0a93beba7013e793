import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ApiError, type Profile, setKey, type Vector } from "../src/api/client";
import { Mutations, Query, REST_MS, repeat } from "../src/core/query";
import { library } from "../src/core/server";
import { counts, policy, policyActions } from "../src/library/admin/store";
import {
  deleteProfile,
  deleteVector,
  deletion,
  loadLibrary,
  profileActions,
  profiles,
  saveProfile,
  selected,
  usersOf,
} from "../src/library/store";
import { held, refusal, serve, settle, unreachable } from "./fakeServer";

const done = () => new Response(null, { status: 204 });
const list = (...names: string[]) => ({ data: names.map((name) => ({ name, interventions: [] })) });

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  vi.stubGlobal("document", { hidden: false });
});

afterEach(() => {
  vi.advanceTimersByTime(REST_MS);
  for (const one of [profiles, policy, counts]) one.forget();
  setKey(null);
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

/** Ends the rest of the buttons. */
const rest = async () => void (await vi.advanceTimersByTimeAsync(REST_MS));

describe("what is loaded", () => {
  it("does not go back to an older answer", async () => {
    const [older, newer] = [held(), held()];
    const answers = [older, newer];
    serve({ "GET /v1/profiles": () => answers.shift()?.promise, "DELETE /v1/profiles/gone": done });
    const poll = profiles.load();
    const deleted = deleteProfile("gone");
    await settle();
    const wanted = list("kept");
    older.give(list("kept", "gone"));
    await settle();
    expect(profiles.data.value).toBeNull();
    newer.give(wanted);
    await Promise.all([poll, deleted]);
    expect(profiles.data.value?.data).toEqual(wanted.data);
  });

  it("is no answer to a former key, nor its failure", async () => {
    for (const answer of [list("secret"), refusal(422, "invalid_request")]) {
      const late = held();
      serve({ "GET /v1/profiles": () => late.promise });
      const load = profiles.load();
      setKey(`another ${String(answer)}`);
      late.give(answer);
      await load;
      expect([profiles.data.value, profiles.error.value]).toEqual([null, null]);
    }
  });
});

describe("a read that fails", () => {
  it("keeps what was read unless the key is refused, and says why until a read succeeds", async () => {
    let answer: unknown = 1;
    const loaded = new Query<unknown>(async () => {
      if (answer instanceof Error) throw answer;
      return answer;
    });
    await loaded.load();
    answer = new TypeError("fetch failed");
    await loaded.load();
    expect([loaded.data.value, loaded.error.value]).toEqual([1, answer]);
    answer = 2;
    await loaded.load();
    expect([loaded.data.value, loaded.error.value]).toEqual([2, null]);
    answer = new ApiError(403, "insufficient_scope", "no");
    await loaded.load();
    expect([loaded.data.value, loaded.error.value]).toEqual([null, answer]);
  });

  it("leaves it unknown, not empty, before a key is given", async () => {
    const refused = () => refusal(401, "invalid_api_key");
    serve({ "GET /v1/profiles": refused, "GET /v1/steering": refused, "GET /v1/jobs": refused });
    await loadLibrary();
    expect(profiles.data.value).toBeNull();
    serve({
      "GET /v1/profiles": () => list(),
      "GET /v1/steering": () => ({ interventions: null }),
      "GET /v1/jobs": () => list(),
    });
    await loadLibrary();
    expect([profiles.data.value?.data, profiles.error.value]).toEqual([[], null]);
  });
});

describe("a poll", () => {
  it("reads again only when the read before has ended, and not after the end", async () => {
    let reads = 0;
    let finish: (value?: unknown) => void = () => undefined;
    const stop = repeat(2, () => {
      reads++;
      return new Promise((resolve) => {
        finish = resolve;
      });
    });
    await vi.advanceTimersByTimeAsync(7000);
    expect(reads).toBe(1);
    finish();
    await vi.advanceTimersByTimeAsync(2000);
    expect(reads).toBe(2);
    stop();
    finish();
    await vi.advanceTimersByTimeAsync(7000);
    expect(reads).toBe(2);
  });
});

describe("what a person asks for", () => {
  it("is done once, however quick the server is, and again after a rest", async () => {
    const actions = new Mutations<"here">();
    const work = vi.fn(async () => undefined);
    expect(await Promise.all([actions.run("here", work), actions.run("here", work)])).toEqual([true, false]);
    await vi.advanceTimersByTimeAsync(250);
    expect(await actions.run("here", work)).toBe(false);
    await rest();
    expect(actions.busy.value).toBe(false);
    expect(await actions.run("here", work)).toBe(true);
    expect(work).toHaveBeenCalledTimes(2);
  });

  it("keeps buttons waiting while it goes on", async () => {
    const actions = new Mutations<"here">();
    let finish: () => void = () => undefined;
    const running = actions.run("here", () => new Promise<void>((resolve) => (finish = resolve)));
    await rest();
    expect(actions.busy.value).toBe(true);
    finish();
    await running;
    await settle();
    expect(actions.busy.value).toBe(false);
  });

  it("fails where it was asked for, until the next is asked for or another key is given", async () => {
    const actions = new Mutations<"here" | "there">();
    const error = new Error("no");
    expect(await actions.run("here", () => Promise.reject(error))).toBe(false);
    expect([actions.errorAt("here"), actions.errorAt("there")]).toEqual([error, null]);
    setKey("another");
    expect(actions.errorAt("here")).toBeNull();
    setKey(null);
    await rest();
    await actions.run("there", async () => undefined);
    expect(actions.errorAt("here")).toBeNull();
  });
});

describe("saving a profile", () => {
  it("keeps its description, also of one that was not read yet", async () => {
    const bodies: unknown[] = [];
    const known = { data: [{ name: "A", description: "for tea", interventions: [] }] };
    const put = (body: unknown) => ({ sent: bodies.push(body) });
    serve({ "GET /v1/profiles": () => known, "PUT /v1/profiles/A": put, "PUT /v1/profiles/B": put });
    expect(await saveProfile("A", [])).toBe(true);
    await rest();
    expect(await saveProfile("B", [])).toBe(true);
    expect(bodies).toEqual([{ interventions: [], description: "for tea" }, { interventions: [], description: "" }]); // biome-ignore format: one line
  });

  it("says that it was refused, and a poll does not take the reason away", async () => {
    serve({
      "GET /v1/profiles": () => list(),
      "PUT /v1/profiles/A": () => refusal(400, "invalid_request"),
      "GET /v1/steering": () => ({ interventions: null }),
      "GET /v1/jobs": () => list(),
    });
    expect(await saveProfile("A", [])).toBe(false);
    await loadLibrary();
    expect(profileActions.errorAt("form")).toMatchObject({ code: "invalid_request" });
  });

  it("succeeds although the list cannot be read again, and the list says so", async () => {
    serve({ "GET /v1/profiles": () => list("old") });
    await profiles.load();
    serve({ "GET /v1/profiles": unreachable, "PUT /v1/profiles/new": () => ({}) });
    expect(await saveProfile("new", [])).toBe(true);
    expect(profileActions.errorAt("form")).toBeNull();
    expect(profiles.data.value?.data).toEqual(list("old").data);
    expect(profiles.error.value).toBeInstanceOf(TypeError);
  });
});

describe("deletion of a vector", () => {
  it("is refused in its dialog while the policy uses it, and can be forced then", async () => {
    selected.value = "formality";
    serve({ "DELETE /v1/vectors/formality": () => refusal(409, "vector_in_use") });
    expect(await deleteVector("formality", false)).toBe(false);
    expect(deletion.errorAt("vector formality")).toMatchObject({ code: "vector_in_use" });
    expect(selected.value).toBe("formality");
    await rest();
    const asked = serve({ "DELETE /v1/vectors/formality": done, "GET /v1/vectors": () => ({ data: [] }) });
    expect(await deleteVector("formality", true)).toBe(true);
    expect(asked[0]).toBe("DELETE /v1/vectors/formality?force=true");
    expect([selected.value, deletion.errorAt("vector formality")]).toEqual([null, null]);
  });

  it("says that the list could not be read again only until it is read", async () => {
    serve({ "DELETE /v1/vectors/formality": done, "GET /v1/vectors": () => refusal(422, "invalid_request") });
    expect(await deleteVector("formality", false)).toBe(true);
    expect(library.error.value).toMatchObject({ code: "invalid_request" });
    serve({ "GET /v1/vectors": () => ({ data: [] }) });
    await library.load();
    expect(library.error.value).toBeNull();
  });

  it("names the policy, which takes shared vectors only", () => {
    policy.put({ mandatory: [{ vector: "formality@2" }], monitors: [], limits: {} } as never);
    profiles.put({
      data: [{ name: "p", interventions: [{ vector: "formality" }] } as unknown as Profile],
      warnings: [],
    });
    const named = (namespace: string) => usersOf({ name: "formality", namespace } as Vector);
    expect(named("shared")).toEqual(["profile p", "the policy"]);
    expect(named("mine")).toEqual(["profile p"]);
    expect(policyActions.busy.value).toBe(false);
  });
});
