import "./fakeAddress";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { keyRefusal, setKey, type Vector } from "../src/api/client";
import { change, draft, restoredDraft } from "../src/compare/draft";
import { cards, firstDemonstration, gallery } from "../src/compare/gallery";
import { savedSentence } from "../src/compare/Landing";
import {
  askedDraft,
  comparison,
  draftProblem,
  nextTurn,
  pin,
  previousTurn,
  reroll,
  restoreRun,
  run,
  runBefore,
  runs,
  sharedResults,
  showLanding,
  shownRun,
  showResults,
  stale,
} from "../src/compare/store";
import { open } from "../src/core/places";
import { conceptList, library } from "../src/core/server";
import { events, FakeServer, held } from "./fakeServer";

const COMPARE = "POST /v1/compare";
const choices = [{ text: " Very well.", finish_reason: "stop", tokens: [] }];
const answer = { arms: [{ name: "normal", choices, steering: { applied: [], warnings: [] } }] };
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
  const turn = { prompt: "How are you?", answers: { normal: " Very well." } };

  it("pairs the answers with the question that was asked, and keeps a follow-up that was typed since", async () => {
    change({ prompt: "How are you?", history: [earlier], system: "Be brief." });
    await asked();
    change({ prompt: "And tomorrow?", system: "Be long." });
    nextTurn();
    expect(draft.value).toMatchObject({
      history: [earlier],
      turns: [turn],
      prompt: "And tomorrow?",
      system: "Be long.",
    });
  });

  it("clears the question, a second click changes nothing, and one turn back asks it again", async () => {
    change({ prompt: "How are you?" });
    await asked();
    for (const _ of [1, 2]) nextTurn();
    expect(draft.value).toMatchObject({ turns: [turn], prompt: "" });
    previousTurn();
    expect(draft.value).toMatchObject({ turns: [], prompt: "How are you?" });
  });

  it("keeps what was typed since when one turn is taken back", async () => {
    change({ prompt: "How are you?" });
    await asked();
    nextTurn();
    change({ prompt: "And tomorrow?" });
    await asked();
    previousTurn();
    expect(draft.value).toMatchObject({ turns: [], prompt: "How are you?" }); // the later question was asked, and not typed since
    nextTurn();
    await asked();
    nextTurn();
    change({ prompt: "Why?" });
    previousTurn();
    expect(draft.value).toMatchObject({ turns: [], prompt: "Why?" });
  });

  it("asks every thread with what it said itself", async () => {
    change({ prompt: "Who are you?", instruction: "Be kind." });
    server.on(COMPARE, (body) => {
      const arms = (body as { arms: { name: string }[] }).arms.map(({ name }) => ({ name, choices: [{ ...choices[0], text: `I am ${name}.` }], steering: {} })); // biome-ignore format: one line
      return events(["done", { arms }]);
    });
    await asked();
    nextTurn();
    change({ prompt: "Really?" });
    await asked();
    const later = server.bodies.slice(1) as { arms: { name: string }[]; messages: { content: string }[] }[];
    expect(later.map(({ arms, messages }) => [arms[0]?.name, messages[1]?.content])).toEqual([
      ["normal", "I am normal."],
      ["prompt-only", "I am prompt-only."],
    ]);
    expect(comparison.panes.value.map(({ choices }) => choices[0]?.text)).toEqual([
      "I am normal.",
      "I am prompt-only.",
    ]);
  });

  it("waits for an answer", () => {
    const before = draft.value;
    nextTurn();
    expect(draft.value).toBe(before);
  });
});

describe("answers in a link", () => {
  it("are shown again with their settings, and are left out once something was changed", async () => {
    change({ prompt: "How are you?" });
    await asked();
    const { results } = sharedResults();
    change({ seed: 12 });
    expect(sharedResults()).toEqual({});
    change({ seed: 7 });
    comparison.close();
    showResults(JSON.parse(JSON.stringify(results)));
    const [shown] = comparison.panes.value[0]?.choices ?? [];
    expect([shown?.text, shown?.tokens.map((one) => one.text)]).toEqual([" Very well.", [" Very", " well."]]);
    expect([stale.value, askedDraft.value?.prompt, server.seen.length]).toEqual([false, "How are you?", 1]);
    comparison.close();
    const [pane] = JSON.parse(JSON.stringify(results)) as object[];
    const broken = [{ choices: [{}] }, { metrics: {} }, { against: { readout_shift: {} } }, { steering: {} }];
    for (const part of broken) showResults([{ ...pane, ...part }]);
    for (const wrong of [null, "x", [], [null], [{ name: 1 }]]) showResults(wrong);
    expect(comparison.panes.value).toEqual([]);
  });

  it("belong to the settings of the link, also where something was changed before they were shown", async () => {
    change({ prompt: "How are you?" });
    await asked();
    const { results } = sharedResults();
    const of = draft.value;
    comparison.close();
    change({ seed: 12 });
    showResults(results, of);
    expect([askedDraft.value?.seed, stale.value]).toEqual([7, true]);
  });

  it("are left out where the server would count too many bytes", async () => {
    for (const [character, kept] of [
      ["e", true],
      ["é", false],
    ] as const) {
      const text = character.repeat(16_000);
      server.on(COMPARE, () => events(["done", { arms: [{ ...answer.arms[0], choices: [{ ...choices[0], text }] }] }]));
      change({ prompt: character });
      await asked();
      expect("results" in sharedResults()).toBe(kept);
    }
  });
});

describe("the words that the model is told", () => {
  const joy = { name: "joy", layers: [1], recommended: { layers: [1] } } as unknown as Vector;

  afterEach(() => {
    library.forget();
    conceptList.forget();
  });

  it("are awaited before anything is asked, unless they were written or cannot be read", async () => {
    const problem = "The concepts are still being read.";
    change(restoredDraft({ controls: [{ vector: "joy" }] }));
    library.put({ data: [joy], warnings: [] });
    run();
    expect([draftProblem.value, server.seen]).toEqual([problem, []]);
    change({ instruction: "Be kind." });
    expect(draftProblem.value).toBeNull();
    change({ instruction: null });
    conceptList.error.value = new Error("unreadable");
    expect(draftProblem.value).toBeNull();
    conceptList.error.value = null;
    setKey("secret");
    keyRefusal.value = "It may not.";
    expect(draftProblem.value).toBeNull();
    setKey(null);
    keyRefusal.value = null;
    expect(draftProblem.value).toBe(problem);
    conceptList.put([]);
    expect(draftProblem.value).toBeNull();
  });
});

describe("runs", () => {
  it("are kept with what was set, come back with a click, and a pinned one stays", async () => {
    runs.value = [];
    for (let seed = 1; seed <= 14; seed++) {
      change({ prompt: `Question ${seed}`, seed });
      await asked();
      if (seed === 1) pin(runs.value[0]!.id);
    }
    expect(runs.value.map((run) => run.draft.seed)).toEqual([1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    restoreRun(runBefore.value!);
    expect([draft.value.prompt, askedDraft.value?.seed, stale.value]).toEqual(["Question 13", 13, false]);
    restoreRun(runBefore.value!);
    expect(draft.value.seed).toBe(12);
  });

  it("are not shown any more once the conversation goes on, and Undo shows the last one", async () => {
    runs.value = [];
    await asked();
    for (const leave of [nextTurn, previousTurn, showLanding]) {
      restoreRun(runs.value[0]!);
      leave();
      expect([shownRun.value, runBefore.value]).toEqual([null, runs.value[0]]);
    }
  });

  it("are asked once by the release of a dial and the click on Run that released it", async () => {
    run();
    run();
    await vi.waitFor(() => expect(comparison.running.value).toBe(false));
    expect(server.seen).toEqual([COMPARE]);
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

  const stop = (strength: number) => ({ strength, shift: [strength / 2, 0.1], perplexity_ratio: 1.1, words: [["So.", 1]] }) as never; // biome-ignore format: one line
  const item = { vector: "sentiment", poles: { positive: "warm", negative: "gloomy" }, prompt: "Well?", seed: 9, stops: [-3, -2, -1, 0, 1, 2, 3].map(stop) }; // biome-ignore format: one line

  beforeEach(() => {
    server.on(COMPARE, () => held().promise);
    conceptList.put([]);
    gallery.data.value = { model: "small", date: "", samples: 16, items: [item] };
  });

  it("is one of the ends of the saved dials, which say what was measured", () => {
    expect(cards.value).toEqual([
      { item: 0, stop: 6 },
      { item: 0, stop: 0 },
    ]);
    expect(savedSentence(item, item.stops[0]!)).toBe(
      "Clearly more “gloomy” (−1.50 ± 0.10 over 16 answers), as fluent as before.",
    );
    expect(savedSentence(item, item.stops[3]!)).toContain("plain answer");
    const other = { ...(item.stops[0] as unknown as object), shift: [1, 0.1], perplexity_ratio: 1.4 } as never; // it moved the other way
    expect(savedSentence(item, other)).toBe(
      "Clearly more “warm” (+1.00 ± 0.10 over 16 answers), a little less fluent.",
    );
  });

  it("is run when nothing was changed meanwhile", () => {
    const show = firstDemonstration();
    library.data.value = { data: [sentiment], warnings: [] } as never;
    show();
    expect(draft.value.controls[0]).toMatchObject({ vector: "sentiment", strength: 3 });
    expect(draft.value).toMatchObject({ prompt: "Well?", seed: 9 });
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
