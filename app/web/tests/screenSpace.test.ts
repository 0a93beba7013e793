import { render } from "preact";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { setKey } from "../src/api/client";
import { change, restoredDraft } from "../src/compare/draft";
import address from "../src/compare/gallery/smollm2-135m-instruct.json?url";
import { capabilities } from "../src/core/server";
import { LensPanel } from "../src/space/LensPanel";
import { Selection } from "../src/space/Selection";
import { SpaceControls } from "../src/space/SpaceControls";
import { Story } from "../src/space/Story";
import * as space from "../src/space/store";
import { FakeElement, page } from "./fakePage";
import { held, refusal, settle } from "./fakeServer";
import { onScreen, root, server, show } from "./onScreen";

onScreen();

describe("the texts of a map", () => {
  const boxes = () => root.all().filter((one) => one.given.get("type") === "checkbox");
  const named = (part: string) => boxes().map((one) => one.given.get("aria-label")).filter((one) => one?.includes(part)); // biome-ignore format: one line

  beforeEach(() => {
    const texts = Array.from({ length: 201 }, (_, index) => `text ${index}`);
    space.drawn.value = { set: { texts, labels: null }, answer: { layers: [] }, vector: null } as never;
    space.lasso([]);
    show(Selection, {});
  });

  afterEach(() => {
    space.lasso([]);
    space.drawn.value = null;
  });

  it("can be selected without a pointer, and stay listed", async () => {
    for (const index of [2, 0]) boxes()[index]?.fire("change", { currentTarget: { checked: true } });
    await settle();
    expect([space.lassoed.value, boxes().length]).toEqual([[0, 2], 200]);
    expect(root.textContent).toContain("2 texts are selected");
    boxes()[2]?.fire("change", { currentTarget: { checked: false } });
    await settle();
    expect(root.textContent).toContain("1 text is selected");
  });

  it("are listed alone after a lasso, also one that is taken out of it", async () => {
    space.lasso([4, 7]);
    await settle();
    expect(named("text")).toEqual(["Select: text 4", "Select: text 7"]);
    boxes()[1]?.fire("change", { currentTarget: { checked: false } });
    await settle();
    expect([space.lassoed.value, boxes().length]).toEqual([[4], 2]);
    root.find("button", "List all texts").press();
    await settle();
    expect([space.lassoed.value, boxes().length]).toEqual([[4], 200]);
  });

  it("are all within reach", async () => {
    root.find("button", "List 1 more").press();
    await settle();
    expect(named("text 200")).toHaveLength(1);
  });
});

describe("the story of the space", () => {
  const CONCEPT = "GET /v1/concepts/sentiment";
  const SPACE = "POST /v1/latent-space";
  const map = (auroc: number) => ({ points: [[0, 0], [1, 1], [2, 0], [3, 1]], separability: { auroc } }); // biome-ignore format: one line
  const begin = async () => {
    show(Story, {});
    await vi.advanceTimersByTimeAsync(100);
    await settle();
  };

  beforeEach(() => {
    capabilities.value = { model: { name: "smollm2-135m-instruct" }, limits: {} } as never;
    vi.stubGlobal("ResizeObserver", class { observe = () => {}; disconnect = () => {}; }); // biome-ignore format: one line
    vi.stubGlobal("getComputedStyle", () => ({ color: "" }));
    vi.stubGlobal("matchMedia", () => ({ matches: true }));
    vi.stubGlobal("devicePixelRatio", 1);
    Object.assign(FakeElement.prototype, { getContext: () => null });
    Object.assign(page, { createElement: (name: string) => new FakeElement(name), body: { append: () => {} } });
  });

  afterEach(() => {
    setKey(null);
    capabilities.value = null;
  });

  it("says why it cannot be told, is told with another key, and then asks no more", async () => {
    server
      .on(CONCEPT, () => refusal(404, "not_found"))
      .on(`GET ${address}`, () => ({ model: "", date: "", samples: 0, items: [] }));
    await begin();
    expect(root.textContent).toContain("refused: not_found");
    expect(root.textContent).not.toContain("Reading the sentences");
    const pairs = [1, 2].map((at) => ({ positive: `good ${at}`, negative: `bad ${at}` }));
    server
      .on(CONCEPT, () => ({ positive: "warm", negative: "gloomy", data: pairs }))
      .on(SPACE, () => ({ embedding: map(0.8), layers: [map(0.9)] }));
    setKey("another");
    await begin();
    expect(root.textContent).toContain("tell the two apart with an AUROC of 0.80");
    const asked = server.bodies.filter((_, index) => server.seen[index] === SPACE) as { position: string }[];
    expect(asked.map(({ position }) => position)).toEqual(["mean", "mean"]);
    for (const title of ["2. Layer by layer", "3. Here is the arrow"]) {
      root.find("button", "Next").press();
      await settle();
      expect(root.find("h2").textContent).toContain(title);
    }
    root.find("button", "Open the tool"); // there are no saved answers for a fourth scene
    render(null, root as never);
    await begin();
    expect(server.seen.filter((one) => one === SPACE)).toHaveLength(2);
  });
});

describe("the table of the logit lens", () => {
  it("says what it is of, and is dim, once it would be read with something else", async () => {
    const at = [[{ id: 1, text: "Paris", logprob: -1 }]];
    server.on("POST /v1/logit-lens", () => ({ tokens: [{ text: "is" }], layers: [{ layer: 0, plain: at, steered: at }] })); // biome-ignore format: one line
    change(restoredDraft({ controls: [{ vector: "joy", strength: 2 }] }));
    show(LensPanel, {});
    root.find("form").fire("submit");
    await settle();
    const box = () =>
      root
        .all()
        .find((one) => one.given.get("role") === "region")
        ?.given.get("class");
    expect([box(), root.textContent.includes("This table is of")]).toEqual(["scroll lens", false]);
    capabilities.value = { limits: { max_top_logprobs: 2 } } as never;
    root.find("form").fire("submit");
    await settle();
    expect((server.bodies as { top_k: number }[]).map((one) => one.top_k)).toEqual([3, 2]);
    capabilities.value = null;
    root.find("form").fire("submit");
    await settle();
    change({ overall: 2 });
    await settle();
    expect(box()).toBe("scroll lens stale");
    expect(root.textContent).toContain("This table is of “The capital of France is”, steered with joy 2.");
    change(restoredDraft({}));
  });
});

describe("a map without a vector", () => {
  it("is neither along one nor coloured by its scores", () => {
    space.chooseVector("joy");
    space.method.value = space.ALONG_VECTOR;
    space.colourBy.value = "score";
    space.chooseVector(null);
    expect([space.method.value, space.colourBy.value]).toEqual(["pca", "label"]);
  });
});

describe("the dimensions of a map along a vector", () => {
  it("are two, and three are those of another method", async () => {
    server.on("GET /v1/concepts/sentiment", () => held().promise);
    space.method.value = space.ALONG_VECTOR;
    space.dims.value = 3;
    show(SpaceControls, {});
    const pressed = () => root.all().filter((one) => one.given.get("aria-pressed") === "true").map((one) => one.textContent); // biome-ignore format: one line
    expect(pressed()).toContain("2-D");
    root.find("button", "3-D").press();
    await settle();
    expect([space.method.value, space.dims.value, pressed().includes("3-D")]).toEqual(["pca", 3, true]);
    space.stopDrawing();
    space.dims.value = 2;
  });
});
