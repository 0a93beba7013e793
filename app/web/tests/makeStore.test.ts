import "./fakeAddress";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { card, conceptList } from "../src/core/server";
import * as dictionary from "../src/make/Dictionary";
import * as store from "../src/make/store";
import { proposing } from "../src/make/store";
import { error, name } from "../src/make/work";
import { FakeServer, held, refusal } from "./fakeServer";

const DETAIL = "GET /v1/concepts/joy";
const empty = { positive: "", negative: "" };
const own = { positive: "I won.", negative: "I lost." };
const half = { positive: "", negative: "It rains." };
const joy = { positive: "Hurray!\nWell done.", negative: "Alas." };
const turns = [{ content: "Hurray!" }, { content: "Well done." }];
let server: FakeServer;

beforeEach(() => {
  server = new FakeServer().on(DETAIL, () => ({ data: [{ positive: turns, negative: "Alas." }] }));
  conceptList.data.value = [
    { name: "joy", pairs: 8 },
    { name: "formality", pairs: 8 },
  ] as never;
  store.concept.value = "";
  store.chooseSource("concept");
  store.rows.value = [own, empty, half, empty];
  name.value = "";
  error.value = null;
});

afterEach(() => vi.unstubAllGlobals());

describe("a concept in words", () => {
  it("is found by the words of its sentences, and fills in both sides", () => {
    const poet = { name: "poet", kind: "role", pairs: 0, description: "Answers in verse.", positive: "a poet", negative: "plain" }; // biome-ignore format: one line
    conceptList.data.value = [{ ...poet, name: "verse", pairs: 8 }, poet] as never;
    store.wanted.value = "VERSE role";
    expect(store.inWords.value).toEqual([poet]);
    store.describe(poet as never);
    expect([store.sides.value, name.value]).toEqual([{ positive: "a poet", negative: "plain" }, "poet"]);
    expect(store.inWords.value).toEqual([]);
  });
});

describe("pairs", () => {
  it("that are pasted come below those that are written or half written", () => {
    store.addText("positive\tnegative\ngood\tbad\n");
    expect(store.rows.value).toEqual([own, half, { positive: "good", negative: "bad" }, empty]);
  });

  it("of a concept come below one's own, once", async () => {
    store.chooseConcept("joy");
    for (const _ of [1, 2]) {
      store.chooseSource("concept");
      await store.addConceptPairs();
      expect(store.rows.value).toEqual([own, half, joy, empty]);
    }
    expect(store.source.value).toBe("pairs");
  });

  it("of a concept give way to those of another, except those that were edited", async () => {
    const formality = { positive: "Good evening.", negative: "Yo." };
    const alas = { positive: "Great.", negative: "Alas, alas." };
    server
      .on(DETAIL, () => ({ data: [joy, { positive: "Great.", negative: "Alas." }] }))
      .on("GET /v1/concepts/formality", () => ({ data: [formality] }));
    store.chooseConcept("joy");
    await store.addConceptPairs();
    store.setRow(3, { negative: "Alas, alas." });
    store.chooseSource("concept");
    store.chooseConcept("formality");
    await store.addConceptPairs();
    expect(store.rows.value).toEqual([own, half, alas, formality, empty]);
  });
});

describe("pairs that are not added", () => {
  it.each([
    ["concept", () => store.chooseConcept("formality")],
    ["source", () => store.chooseSource("dictionary")],
  ])("are those of a concept after another %s was chosen, nor is a failure shown", async (_, choose) => {
    for (const answer of [{ data: [] }, refusal(422, "invalid_request")]) {
      const late = held();
      server.on(DETAIL, () => late.promise);
      store.chooseSource("concept");
      store.chooseConcept("joy");
      const add = store.addConceptPairs();
      expect(store.adding.value).toBe(true);
      choose();
      const chosen = store.source.value;
      late.give(answer);
      await add;
      expect([store.rows.value, store.source.value]).toEqual([[own, empty, half, empty], chosen]);
      expect([store.adding.value, error.value]).toEqual([false, null]);
    }
  });

  it("are those of a concept that cannot be read, which is an error", async () => {
    server.on(DETAIL, () => refusal(422, "invalid_request"));
    store.chooseConcept("joy");
    await store.addConceptPairs();
    expect(error.value).toMatchObject({ code: "invalid_request" });
    expect(store.rows.value).toEqual([own, empty, half, empty]);
  });
});

describe("pairs that the model proposes", () => {
  const answers = (body: unknown) => {
    const { messages, arms } = body as { messages: { content: string }[]; arms: { name: string; system: string }[] };
    return { arms: arms.map(({ name, system }) => ({ name, choices: [{ text: ` ${system} ${messages[0]?.content}` }] })) }; // biome-ignore format: one line
  };

  it("are added one by one below what was written, and name the vector", async () => {
    const server = new FakeServer().on("POST /v1/compare", answers);
    name.value = "";
    store.rows.value = [{ positive: "Mine", negative: "Yours" }];
    store.sides.value = { positive: "talk like a pirate", negative: "" };
    await proposing.ask();
    expect(server.seen).toHaveLength(16);
    expect(name.value).toBe("pirate");
    expect(store.rows.value).toHaveLength(18);
    await proposing.ask(); // the model is asked with the same seeds, and answers the same
    expect([server.seen.length, store.rows.value.length]).toEqual([32, 18]);
    expect(store.rows.value.slice(0, 2)).toEqual([
      { positive: "Mine", negative: "Yours" },
      {
        positive: "Answer in this manner: talk like a pirate. How was your day?",
        negative: "Answer in this manner: the opposite of: talk like a pirate. How was your day?",
      },
    ]);
  });

  it("end with what is there where the model fails", async () => {
    let asked = 0;
    new FakeServer().on("POST /v1/compare", (body) => (++asked > 2 ? refusal(422, "invalid_request") : answers(body)));
    store.rows.value = [];
    store.sides.value = { positive: "be kind", negative: "be rude" };
    await proposing.ask();
    expect(store.rows.value).toHaveLength(3);
    expect(proposing.error.value).toMatchObject({ code: "invalid_request" });
  });
});

describe("the name of a vector of a concept", () => {
  it("is that of the concept until one is typed", () => {
    store.chooseConcept("joy");
    store.chooseConcept("formality");
    expect(name.value).toBe("formality");
    name.value = "my-joy";
    store.chooseConcept("joy");
    expect([name.value, store.concept.value]).toEqual(["my-joy", "joy"]);
  });
});

describe("a dictionary", () => {
  const SEARCH = "POST /v1/dictionaries/d/search";
  const found = { dictionary: "d", layer: 1, features: [] };

  beforeEach(() => {
    dictionary.dictionaries.data.value = [{ name: "d" }] as never;
    dictionary.choose("d");
    dictionary.setFields({ texts: "Hurray!" });
    card.value = "before";
    server.on("GET /v1/vectors", () => ({ data: [], next_cursor: null }));
  });

  it("closes the card that was shown when the search began, and no later one", async () => {
    server.on(SEARCH, () => found);
    await dictionary.search();
    expect(card.value).toBeNull();
    const late = held();
    server.on(SEARCH, () => late.promise);
    const search = dictionary.search();
    card.value = "meanwhile";
    late.give(found);
    await search;
    expect([dictionary.searching.data.value?.dictionary, card.value]).toEqual(["d", "meanwhile"]);
  });

  it("leaves the feature that is chosen while the one before is stored", async () => {
    const late = held();
    server.on(SEARCH, () => found).on("POST /v1/dictionaries/d/vectors", () => late.promise);
    await dictionary.search();
    const chosen = () => [dictionary.feature.value, dictionary.featureName.value];
    for (const [next, left] of [
      [8, [8, "feature-8"]],
      [null, [null, ""]],
    ] as const) {
      dictionary.chooseFeature(7);
      const store = dictionary.storeFeature();
      if (next !== null) dictionary.chooseFeature(next);
      late.give({});
      await store;
      expect(chosen()).toEqual(left);
    }
  });
});
