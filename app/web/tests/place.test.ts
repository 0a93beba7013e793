import { expect, it, vi } from "vitest";
import { setKey } from "../src/api/client";
import { change, draft, restoredDraft } from "../src/compare/draft";
import { SteeringPanel } from "../src/compare/SteeringPanel";
import { REST_MS } from "../src/core/query";
import { library } from "../src/core/server";
import { TopBar } from "../src/frame/Frame";
import { Keys } from "../src/library/admin/Keys";
import { PolicyPanel } from "../src/library/admin/Policy";
import { keys, policy } from "../src/library/admin/store";
import { Profiles } from "../src/library/Library";
import { profiles } from "../src/library/store";
import { VectorDetails } from "../src/library/VectorDetails";
import { Button } from "../src/ui/parts";
import { page } from "./fakePage";
import { settle } from "./fakeServer";
import { onScreen, root, server, show } from "./onScreen";

onScreen();

const focused = () => page.activeIn(root)?.textContent;

it("is kept by a button that rests after its work, and pressing it again does nothing", async () => {
  profiles.data.value = { data: [{ name: "gloom", interventions: [] } as never], warnings: [] };
  server.on("PUT /v1/steering", () => ({})).on("GET /v1/steering", () => ({ interventions: [] }));
  show(Profiles, {});
  root.find("button", "Make default").press();
  await settle();
  const button = root.find("button", "Make default");
  expect([focused(), button.given.get("aria-disabled")]).toEqual(["Make default: gloom", "true"]);
  button.press();
  await vi.advanceTimersByTimeAsync(REST_MS);
  expect([focused(), button.given.has("aria-disabled")]).toEqual(["Make default: gloom", false]);
  expect(server.seen).toEqual(["PUT /v1/steering", "GET /v1/steering"]);
});

it("is kept by the button of a form that is empty again once its work is done", async () => {
  profiles.data.value = { data: [], warnings: [] };
  draft.value = { ...draft.value, controls: [{ vector: "joy", on: true, operation: "ablate" } as never] };
  server.on("PUT /v1/profiles/gloom", () => ({})).on("GET /v1/profiles", () => ({ data: [] }));
  show(Profiles, {});
  root.find("input").fire("input", { currentTarget: { value: "gloom" } });
  await settle();
  const button = root.find("button", "Save what Play uses");
  expect(button.press()).toBe(true);
  root.find("form").fire("submit");
  await vi.advanceTimersByTimeAsync(REST_MS);
  expect([focused(), button.given.get("aria-disabled")]).toEqual(["Save what Play uses", "true"]);
  expect(button.press()).toBe(false); // nor does Enter in the field send the form
});

it("is kept when the limits of the policy were set", async () => {
  const limits = { own_steering: "any", max_relative_dose: 0.5 };
  policy.data.value = { mandatory: [], monitors: [], limits: {} } as never;
  server
    .on("GET /v1/policy", () => policy.data.value)
    .on("PUT /v1/policy", () => ({ mandatory: [], monitors: [], limits }))
    .on("GET /v1/monitors", () => ({ data: [] }));
  show(PolicyPanel, {});
  root.find("button", "Set the limits").focus();
  root.find("form").fire("submit");
  await settle();
  expect(root.textContent).toContain("Now: requests may steer with any vector; dose at most 0.5.");
  expect(focused()).toBe("Set the limits");
});

it("lets a form of limits change only what was typed into it", async () => {
  const at = (limits: object) => ({ mandatory: [], monitors: [], limits });
  policy.data.value = at({ vectors: [], max_relative_dose: 0.5 }) as never;
  const another = { vectors: [], max_relative_dose: 0.5, own_steering: "profiles" }; // somebody else has set this since
  server
    .on("GET /v1/policy", () => at(another))
    .on("PUT /v1/policy", (body) => body)
    .on("GET /v1/monitors", () => ({ data: [] }));
  show(PolicyPanel, {});
  root.find("label", "Largest relative dose").find("input").fire("input", { currentTarget: { value: "0.1", validity: {} } }); // biome-ignore format: one line
  await settle();
  root.find("form").fire("submit");
  await settle();
  expect(server.bodies[1]).toEqual(at({ ...another, max_relative_dose: 0.1 }));
  await vi.advanceTimersByTimeAsync(REST_MS);
});

it("sets a policy to no vector, and back to any", async () => {
  const at = (limits: object) => ({ mandatory: [], monitors: [], limits });
  server.on("GET /v1/policy", () => policy.data.value).on("GET /v1/monitors", () => ({ data: [] }));
  server.on("PUT /v1/policy", (body) => body);
  show(PolicyPanel, {});
  const set = async (vectors: string[] | null, text: string) => {
    policy.data.value = at({ vectors }) as never;
    await settle();
    root
      .find("label", "Only these vectors")
      .find("input")
      .fire("input", { currentTarget: { value: text } });
    await settle();
    root.find("form").fire("submit");
    await settle();
    await vi.advanceTimersByTimeAsync(REST_MS);
    return policy.data.peek()?.limits;
  };
  expect(await set([], "")).toEqual({});
  expect(await set(["joy"], "")).toEqual({});
  expect(await set(null, "(none)")).toEqual({ vectors: [] });
  expect(await set([], "joy, calm")).toEqual({ vectors: ["joy", "calm"] });
});

it("dims what a policy was tried with once Play or the policy has something else", async () => {
  policy.data.value = { mandatory: [], monitors: [], limits: {} } as never;
  const arms = ["now", "then"].map((name) => ({ name, choices: [{ text: `as ${name}` }] }));
  server.on("POST /v1/compare", () => ({ arms }));
  change(restoredDraft({ prompt: "Why?", controls: [{ vector: "joy", strength: 2 }] }));
  show(PolicyPanel, {});
  root.find("button", "Try it first").press();
  await settle();
  const looks = () => root.all().filter((one) => one.localName === "figure").map((one) => one.given.get("class")); // biome-ignore format: one line
  expect(root.textContent).toContain("Without it: Why?as nowWith joy 2 for everybodyas then");
  expect(looks()).toEqual(["", ""]);
  change({ overall: 2 });
  await settle();
  expect(looks()).toEqual(["stale", "stale"]);
  expect(root.textContent).toContain("With joy 2 for everybody");
  change({ overall: 1 });
  policy.data.value = { mandatory: [{ vector: "joy" }], monitors: [], limits: {} } as never;
  await settle();
  expect(looks()).toEqual(["stale", "stale"]);
});

it("goes on to the button that keeps a vector, and back", async () => {
  library.data.value = {
    data: [{ id: "joy@1", name: "joy", version: 1, layers: [], tags: [], provenance: {} } as never],
    warnings: [],
  } as never;
  server.on("GET /v1/vectors/joy", () => refused);
  show(VectorDetails, { name: "joy" });
  await vi.advanceTimersByTimeAsync(100);
  expect(page.activeIn(root)?.localName).toBe("dialog");
  root.find("button", "Delete").press();
  await settle();
  expect(focused()).toBe("Keep it");
  root.find("button", "Keep it").press();
  await settle();
  expect(focused()).toBe("Delete");
});

it("is on the button that keeps a key, when its revocation was asked for", async () => {
  keys.data.value = { data: [{ id: "k", name: "reader", scopes: [], limits: {} } as never] };
  show(Keys, {});
  root.find("button", "Revoke reader").press();
  await settle();
  expect(focused()).toBe("Keep it");
  root.find("button", "Keep it").press();
  await settle();
  expect(focused()).toBe("Revoke reader");
});

const refused = Response.json({ error: {} }, { status: 404 });

it("goes back to the button that opened a window, also where what it asks for ends it", async () => {
  vi.stubGlobal("localStorage", { getItem: () => null });
  show(TopBar, {});
  root.find("button", "API key").press();
  await vi.advanceTimersByTimeAsync(100);
  root.find("input").fire("input", { currentTarget: { value: "secret" } });
  await settle();
  root.find("form").fire("submit");
  await settle();
  expect(root.all().some((one) => one.localName === "dialog")).toBe(false);
  expect(focused()).toContain("API key");
  setKey(null);
});

it("is kept by the list of vectors when the last one is added", async () => {
  library.data.value = {
    data: [{ name: "joy", layers: [], scale: {}, recommended: { layers: [] } } as never],
    warnings: [],
  } as never;
  change({ controls: [] });
  show(SteeringPanel, {});
  const list = root.find("select");
  list.focus();
  list.fire("change", { currentTarget: { value: "joy" } });
  await settle();
  expect(draft.value.controls).toHaveLength(1);
  expect(page.activeIn(root)).toBe(list);
});

it("does not repeat what a key that is held asks for", () => {
  show(Button, { disabled: false, children: "Rotate" });
  const held = (key: string, repeat: boolean) => root.find("button").fire("keydown", { key, repeat });
  expect([held("Enter", false), held("Enter", true), held("Tab", true)]).toEqual([false, true, false]);
});
