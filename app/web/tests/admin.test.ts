import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { apiKey, type Key, type Policy, setKey } from "../src/api/client";
import { REST_MS } from "../src/core/query";
import {
  counts,
  createKey,
  detail,
  dismissKey,
  editPolicy,
  fresh,
  isBroken,
  keyActions,
  keys,
  loadAdmin,
  monitors,
  openMonitor,
  policy,
  policyActions,
  refusal,
  removePolicy,
  revokeKey,
  rotateKey,
  without,
} from "../src/library/admin/store";
import { type Answer, held, refusal as refuse, serve, settle, unreachable } from "./fakeServer";

const done = () => new Response(null, { status: 204 });

/** A policy as the server holds it, and its routes. */
function policyServer(names: string[]) {
  const state = {
    policy: { mandatory: [], monitors: names.map((name) => ({ name })), limits: {} } as unknown as Policy,
  };
  const routes: Record<string, Answer> = {
    "GET /v1/policy": () => state.policy,
    "PUT /v1/policy": (body) => {
      state.policy = body as Policy;
      return state.policy;
    },
    "GET /v1/monitors": () => ({ data: state.policy.monitors }),
  };
  return { state, routes };
}

const remove = (name: string) =>
  editPolicy("monitor table", (now) => ({ ...now, monitors: now.monitors.filter((one) => one.name !== name) }));

let made = 0;
const makeKey = () => ({ id: `key-${++made}`, key: `secret-${made}`, name: "reader" });

beforeEach(() => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] }));

/** Ends the rest of the buttons. */
const rest = async () => void (await vi.advanceTimersByTimeAsync(REST_MS));

afterEach(async () => {
  await rest();
  for (const one of [keys, policy, counts]) one.forget();
  fresh.value = [];
  openMonitor(null);
  setKey(null);
  await settle();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe("the policy", () => {
  it("is what the server answered to the change, also when the counts cannot be read", async () => {
    const { routes } = policyServer(["m0"]);
    serve({ ...routes, "GET /v1/monitors": unreachable });
    expect(await remove("m0")).toBe(true);
    expect(policy.data.value?.monitors).toEqual([]);
    expect(counts.error.value).toBeInstanceOf(TypeError);
  });

  it("stays while the server cannot be reached, and is removable only when it cannot be applied", async () => {
    const { routes } = policyServer(["m0"]);
    serve(routes);
    await policy.load();
    serve({ "GET /v1/policy": unreachable });
    await policy.load();
    expect(policy.data.value?.monitors).toHaveLength(1);
    expect(isBroken(policy.error.value)).toBe(false);
    serve({ "GET /v1/policy": () => refuse(503, "policy_invalid", { "x-should-retry": "false" }) });
    await policy.load();
    expect([policy.data.value, isBroken(policy.error.value)]).toEqual([null, true]);
    serve({ ...policyServer([]).routes, "DELETE /v1/policy": done });
    await removePolicy();
    expect([policy.data.value?.monitors, policy.error.value]).toEqual([[], null]);
  });

  it("keeps the reason of a refused change while its counts are read", async () => {
    serve({ ...policyServer(["m0"]).routes, "PUT /v1/policy": () => refuse(400, "invalid_request") });
    expect(await editPolicy("monitor form", (now) => now)).toBe(false);
    await counts.load();
    expect(policyActions.errorAt("monitor form")).toMatchObject({ code: "invalid_request" });
    expect(policyActions.errorAt("mandatory")).toBeNull();
  });

  it("is changed by one person one step at a time", async () => {
    const { state, routes } = policyServer(["m0", "m1", "m2"]);
    serve(routes);
    expect(await Promise.all([remove("m1"), remove("m0")])).toEqual([true, false]);
    await rest();
    await remove("m0");
    expect(state.policy.monitors.map((one) => one.name)).toEqual(["m2"]);
  });

  it("loses the entry that was meant, wherever another person has moved it, and none where it is gone", () => {
    const entry = { vector: "sentiment@1", strength: 2 };
    const other = { vector: "formality@1", strength: 1 };
    expect(without([other, entry, { ...entry }], { ...entry })).toEqual([other, entry]);
    expect(without([other], entry)).toEqual([other]);
  });
});

describe("monitors", () => {
  it("show no scores of one that was closed meanwhile", async () => {
    const late = held();
    const scores = { name: "m0", scores: 3 };
    serve({ ...policyServer(["m0", "m1"]).routes, "GET /v1/monitors/m0": () => late.promise });
    openMonitor("m0");
    await settle();
    openMonitor(null);
    await settle();
    late.give(scores);
    await settle();
    expect([detail.value, monitors.value.length]).toEqual([null, 2]);
    serve({ ...policyServer(["m0"]).routes, "GET /v1/monitors/m0": () => scores });
    openMonitor("m0");
    await settle();
    expect(detail.value).toEqual(scores);
    openMonitor("m1");
    expect(detail.value).toBeNull(); // before anything is read
  });
});

describe("keys", () => {
  it("are made once by a double click, and each is shown until it was noted down", async () => {
    const asked = serve({ "POST /v1/keys": makeKey, "GET /v1/keys": () => ({ data: [] }) });
    setKey("admin");
    const body = { name: "reader" } as never;
    expect(await Promise.all([createKey(body), createKey(body)])).toEqual([true, false]);
    expect(asked.filter((one) => one === "POST /v1/keys")).toHaveLength(1);
    await rest();
    await rotateKey({ id: "old" } as Key);
    expect(fresh.value).toHaveLength(2);
    dismissKey(fresh.value[1]?.key.id ?? "");
    expect(fresh.value.map((one) => one.replaces?.id)).toEqual(["old"]);
  });

  it("that are refused a revocation say so where it was asked for", async () => {
    setKey("admin");
    serve({ "DELETE /v1/keys/k": () => refuse(409, "last_admin_key") });
    await revokeKey("k", "fresh new");
    expect(keyActions.errorAt("fresh new")).toMatchObject({ code: "last_admin_key" });
    expect(keyActions.errorAt("key k")).toBeNull();
  });

  it("make the first one the key of this tab", async () => {
    serve({ "POST /v1/keys": makeKey, "GET /v1/keys": () => ({ data: [] }) });
    await createKey({ name: "admin" } as never);
    expect(apiKey.value).toBe(fresh.value[0]?.key.key);
  });
});

describe("a key that is refused", () => {
  it("leaves nothing of what another key was shown, each time", async () => {
    const allowed: Answer = (_, request) =>
      request.headers.get("Authorization") === "Bearer admin"
        ? { data: [{ id: "1" }] }
        : refuse(403, "insufficient_scope");
    const asked = serve({ ...policyServer(["m0"]).routes, "GET /v1/keys": allowed });
    const shown = () => [keys.data.value?.data.length, policy.data.value?.monitors.length, monitors.value.length];
    for (let time = 0; time < 2; time++) {
      setKey("limited");
      await loadAdmin();
      expect(refusal.value).toBe("refused: insufficient_scope");
      expect(shown()).toEqual([undefined, undefined, 0]);
      expect(fresh.value).toEqual([]);
      setKey("admin");
      await loadAdmin();
      expect(refusal.value).toBeNull();
      expect(shown()).toEqual([1, 1, 1]);
      fresh.value = [{ key: { id: "2" } as never, replaces: null }];
    }
    expect(asked.filter((one) => one === "GET /v1/keys")).toHaveLength(3); // the refused key is asked for once
    setKey("mistyped");
    serve({ "GET /v1/keys": () => refuse(401, "invalid_api_key") });
    await loadAdmin();
    expect(shown()).toEqual([undefined, undefined, 0]);
    expect(fresh.value).toHaveLength(1);
  });
});
