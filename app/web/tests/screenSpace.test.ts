import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Selection } from "../src/space/Selection";
import { SpaceControls } from "../src/space/SpaceControls";
import * as space from "../src/space/store";
import { held, settle } from "./fakeServer";
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
