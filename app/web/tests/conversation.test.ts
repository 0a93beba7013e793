import "./fakeAddress";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Vector } from "../src/api/types";
import { change, draft, restoredDraft } from "../src/compare/draft";
import { firstDemonstration } from "../src/compare/presets";
import { comparison, continueFrom, reroll, run } from "../src/compare/store";
import { open } from "../src/core/places";
import { library } from "../src/core/vectors";
import { events, FakeServer, held } from "./fakeServer";

const COMPARE = "POST /v1/compare";
const choices = [{ text: " Very well.", finish_reason: "stop", tokens: [] }];
const answer = { arms: [{ name: "normal", choices, steering: {} }] };
let server: FakeServer;

beforeEach(() => {
  server = new FakeServer().on(COMPARE, () => events(["done", answer]));
  vi.stubGlobal("requestAnimationFrame", (show: () => void) => setTimeout(show));
  draft.value = restoredDraft(null);
  comparison.panes.value = [];
  comparison.asked.value = null;
});

afterEach(() => {
  comparison.stop();
  vi.unstubAllGlobals();
});

async function asked(): Promise<void> {
  run();
  await vi.waitFor(() => expect(comparison.running.value).toBe(false));
}

describe("a conversation that goes on", () => {
  const earlier = { role: "system" as const, content: "Earlier turns may contain a system message." };
  const turns = [
    { role: "user", content: "How are you?" },
    { role: "assistant", content: " Very well." },
  ];

  it("pairs the answer with the question that was asked, and keeps a follow-up that was typed since", async () => {
    change({ prompt: "How are you?", history: [earlier], system: "Be brief." });
    await asked();
    change({ prompt: "And tomorrow?", system: "Be long." });
    continueFrom(" Very well.");
    expect(draft.value).toMatchObject({ history: [earlier, ...turns], prompt: "And tomorrow?", system: "Be long." });
  });

  it("clears the question, and a second click changes nothing", async () => {
    change({ prompt: "How are you?" });
    await asked();
    for (const _ of [1, 2]) continueFrom(" Very well.");
    expect(draft.value).toMatchObject({ history: turns, prompt: "" });
  });

  it("continues a text, and appends what was typed since", async () => {
    change({ prompt: "I am doing", raw: true });
    await asked();
    for (const _ of [1, 2]) continueFrom(" Very well.");
    expect(draft.value.prompt).toBe("I am doing Very well.");
    change({ prompt: "And you?" });
    continueFrom(" Very well.");
    expect(draft.value).toMatchObject({ prompt: "I am doing Very well.\nAnd you?", history: [] });
  });

  it("waits for an answer", () => {
    const before = draft.value;
    continueFrom("nothing was asked");
    expect(draft.value).toBe(before);
  });
});

describe("the first demonstration", () => {
  const recommended = { layers: [1], strength: [1, 3], negative: [-3, -1], basis: "measured" };
  const sentiment = {
    name: "sentiment",
    layers: [1],
    recommended,
    quality: { dose_response: [] },
  } as unknown as Vector;

  beforeEach(() => {
    server.on(COMPARE, () => held().promise);
  });

  it("is run when nothing was changed meanwhile", () => {
    const show = firstDemonstration();
    library.data.value = { data: [sentiment], warnings: [] } as never;
    show();
    expect(draft.value.controls[0]?.vector).toBe("sentiment");
    expect(comparison.running.value).toBe(true);
  });

  it("does not replace what was typed or is run meanwhile", () => {
    library.data.value = { data: [sentiment], warnings: [] } as never;
    const afterTyping = firstDemonstration();
    change({ prompt: "My own question" });
    afterTyping();
    expect(draft.value).toMatchObject({ prompt: "My own question", controls: [] });
    expect(comparison.running.value).toBe(false);
    const afterRun = firstDemonstration();
    run();
    afterRun();
    expect(draft.value).toMatchObject({ prompt: "My own question", controls: [] });
  });

  it("is not run while another place is open", () => {
    const show = firstDemonstration();
    library.data.value = { data: [sentiment], warnings: [] } as never;
    open("read");
    show();
    expect(comparison.running.value).toBe(false);
    open("compare");
    show();
    expect(comparison.running.value).toBe(true);
  });
});

it("keeps the seed, and asks nothing, where there is no prompt to ask again", () => {
  change({ prompt: "", seed: 7 });
  reroll();
  expect([draft.value.seed, server.seen]).toEqual([7, []]);
});
