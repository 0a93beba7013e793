import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { aligned } from "../src/maths/geometry";
import { type Camera, labelsAt, project, svgOf, zoomed } from "../src/space/draw";
import { Legend, Scatter, shown } from "../src/space/Scatter";
import { sceneAt } from "../src/space/Story";
import { COLOURS, LOOKS, scene } from "../src/space/scene";
import * as space from "../src/space/store";
import { FakeElement, page } from "./fakePage";
import { onScreen, root, show } from "./onScreen";

/** A canvas that keeps the outlines and colours of what is filled, and whether a line is drawn that is dashed. */
class FakeContext {
  filled: string[] = [];
  places: number[] = [];
  dashed = 0;
  fillStyle = "";
  private corners = 0;

  beginPath(): void {
    this.corners = 0;
  }

  lineTo(): void {
    this.corners++;
  }

  fill(): void {
    this.filled.push(`${this.fillStyle} ${this.corners}`);
  }

  setLineDash(dashes: readonly number[]): void {
    if (dashes.length > 0) this.dashed++;
  }

  clearRect(): void {
    this.filled = [];
    this.places = [];
    this.dashed = 0;
  }

  arc(x: number): void {
    this.places.push(x);
  }

  closePath(): void {}
  fillText(): void {}
  moveTo(): void {}
  setTransform(): void {}
  stroke(): void {}
  strokeText(): void {}
}

const SIZE = { clientWidth: 600, clientHeight: 400 };
const VIEW = { width: SIZE.clientWidth, height: SIZE.clientHeight, ratio: 1, yaw: 0, pitch: 0 };

/** Finds a size once. */
class FakeObserver {
  constructor(private readonly found: () => void) {}
  disconnect(): void {}
  observe(): void {
    this.found();
  }
}

let canvas: FakeContext;

onScreen();

beforeEach(() => {
  vi.stubGlobal("getComputedStyle", ({ style }: { style: { color: string } }) => style);
  vi.stubGlobal("ResizeObserver", FakeObserver);
  vi.stubGlobal("devicePixelRatio", 1);
  Object.assign(page, { createElement: (name: string) => new FakeElement(name), body: { append: () => {} } });
  canvas = new FakeContext();
});

afterEach(() => {
  space.lasso([]);
  space.drawn.value = space.picked.value = space.scores.value = space.vector.value = null;
  space.colourBy.value = "label";
});

/** Draws texts in a row, each with a label of its own. */
function drawTexts(count: number, depth: readonly number[] = []): void {
  const texts = Array.from({ length: count }, (_, index) => `text ${index}`);
  const points = texts.map((_, index) => [index, index % 2, ...depth]);
  const answer = { embedding: null, layers: [{ layer: 0, points, segments: [] }] };
  space.drawn.value = {
    set: { texts, labels: texts.map((text) => `label of ${text}`) },
    answer,
    vector: null,
  } as never;
  space.playhead.value = 0;
}

async function showMap(): Promise<FakeElement> {
  show(Scatter, {});
  const element = root.find("canvas");
  Object.assign(element, { getContext: () => canvas, setPointerCapture: () => {}, parentElement: SIZE });
  await vi.advanceTimersByTimeAsync(200);
  return element;
}

describe("the labels of a map", () => {
  it("look different from each other, also where there are more than colours", async () => {
    drawTexts(LOOKS);
    await showMap();
    expect(new Set(canvas.filled).size).toBe(LOOKS);
    expect(canvas.filled[0]).toBe("var(--label-1) 0");
    expect(canvas.filled[COLOURS]).toBe("var(--label-1) 3");
  });

  it("look the same in the legend, which says from where on looks repeat", () => {
    drawTexts(COLOURS + 1);
    show(Legend, {});
    const looks = root.all().filter((one) => one.localName === "svg").map((one) => [one.given.get("fill"), one.all()[0]?.localName]); // biome-ignore format: one line
    expect([looks[0], looks[COLOURS]]).toEqual([["var(--label-1)", "circle"], ["var(--label-1)", "polygon"]]); // biome-ignore format: one line
    expect(root.textContent).not.toContain("repeat");
    drawTexts(LOOKS + 1);
    show(Legend, {});
    expect(root.textContent).toContain(`repeat after ${LOOKS} labels`);
  });

  it("have no marks of their own where the colours are of scores", async () => {
    drawTexts(COLOURS + 1);
    space.colourBy.value = "score";
    const list = Array.from({ length: COLOURS + 1 }, (_, index) => index);
    space.scores.value = { vector: "joy", byLayer: new Map([[0, list]]) };
    await showMap();
    expect(new Set(canvas.filled.map((one) => one.split(" ")[1]))).toEqual(new Set(["0"]));
  });
});

describe("the legend of scores", () => {
  it("names the vector whose scores are shown, also once another one is chosen", () => {
    drawTexts(3);
    space.colourBy.value = "score";
    space.vector.value = "calm";
    space.scores.value = { vector: "joy", byLayer: new Map() };
    show(Legend, {});
    expect(root.textContent).toContain("more joy");
    expect(root.textContent).not.toContain("calm");
  });
});

describe("the arrow keys on a map", () => {
  it("turn three dimensions, and scroll the page over two", async () => {
    drawTexts(3, [1]);
    const element = await showMap();
    const before = canvas.places;
    expect(element.fire("keydown", { key: "ArrowRight" })).toBe(true);
    expect(canvas.places).not.toEqual(before);
    expect(element.fire("keydown", { key: "ArrowRight", ctrlKey: true })).toBe(false);
    drawTexts(3);
    await vi.advanceTimersByTimeAsync(200);
    expect(element.fire("keydown", { key: "ArrowRight" })).toBe(false);
  });
});

describe("the pointer on a map", () => {
  it("keeps the selection when a text is followed, and clears it when no point is hit", async () => {
    drawTexts(3);
    const element = await showMap();
    space.select(2, true);
    const click = (offsetX: number, offsetY: number) => {
      element.fire("pointerdown", { offsetX, offsetY, pointerId: 1 });
      element.fire("pointerup", { offsetX, offsetY });
    };
    const [x, y] = project(scene.value?.points[0] ?? [], VIEW);
    click(x, y);
    expect([space.picked.value, space.lassoed.value]).toEqual([0, [2]]);
    click(1, 1);
    expect([space.picked.value, space.lassoed.value]).toEqual([null, []]);
  });

  it("keeps the selection when a double click enlarges the picture", async () => {
    drawTexts(3);
    const element = await showMap();
    space.lasso([1, 2]);
    space.picked.value = 1;
    for (const type of ["pointerdown", "pointerup", "pointerdown", "pointerup", "dblclick"])
      element.fire(type, { offsetX: 1, offsetY: 1, pointerId: 1 });
    expect([space.picked.value, space.lassoed.value, space.listed.value]).toEqual([1, [1, 2], [1, 2]]);
  });

  it("enlarges the picture with two fingers, draws no lasso then, and keeps the selection", async () => {
    drawTexts(3);
    const element = await showMap();
    space.lasso([1]);
    const fire = (type: string, pointerId: number, offsetX: number) =>
      element.fire(type, { offsetX, offsetY: 200, pointerId });
    fire("pointerdown", 1, 280);
    fire("pointerdown", 2, 320);
    for (const at of [330, 350, 360]) fire("pointermove", 2, at);
    expect([canvas.dashed, shown.view?.camera?.zoom]).toEqual([0, 2]);
    fire("pointerup", 2, 360);
    fire("pointermove", 1, 200);
    fire("pointerup", 1, 200);
    expect([space.lassoed.value, shown.view?.camera?.zoom]).toEqual([[1], 2]);
    fire("pointerdown", 1, 1);
    fire("pointerup", 1, 1);
    expect(space.lassoed.value).toEqual([]);
  });

  it("leaves no line when the browser takes it", async () => {
    drawTexts(3);
    const element = await showMap();
    element.fire("pointerdown", { offsetX: 1, offsetY: 1, pointerId: 1 });
    for (const at of [10, 20, 30]) element.fire("pointermove", { offsetX: at, offsetY: at });
    expect(canvas.dashed).toBe(1);
    element.fire("pointercancel");
    expect(canvas.dashed).toBe(0);
  });
});

describe("an enlarged picture", () => {
  const view = { ...VIEW, yaw: 0 };

  it("keeps the place under the pointer, and the whole picture is the smallest", () => {
    const place = (camera: Camera) => project([1, 0.5], { ...view, camera });
    const [x, y] = place(zoomed(view, 1));
    const near = zoomed(view, 3, x, y);
    expect(place(near)[0]).toBeCloseTo(x);
    expect(place(near)[1]).toBeCloseTo(y);
    expect(zoomed({ ...view, camera: near }, 0.01)).toEqual({ zoom: 1, x: 0, y: 0 });
  });

  it("has labels that do not lie on each other and are not cut off by its edge", () => {
    const places = [[0, 10, 10, 0], [1, 12, 11, 0], [2, 10, 60, 0], [3, -5, 90, 0]] as const; // biome-ignore format: one line
    expect(labelsAt(["one", "two", "three", "four"], places, view).map(({ text }) => text)).toEqual(["one", "three"]);
    expect(labelsAt(["a".repeat(40)], [[0, 10, 10, 0]], view)[0]?.text).toHaveLength(26);
  });
});

describe("a drawing of a picture", () => {
  it("has each point with its text, which stays text, and the arrows", () => {
    vi.stubGlobal("getComputedStyle", () => ({ color: "rgb(0, 0, 1)" }));
    Object.assign(page, { createElement: (name: string) => new FakeElement(name), body: { append: () => {} } });
    const points = [[0, 0], [1, 1]]; // biome-ignore format: one line
    const base = { points, colours: [0, 1], palette: ["red", "blue"], marks: [[], [[0, 1], [1, 0], [1, 1]]], labels: ["<b>", "b"] }; // biome-ignore format: one line
    const drawn = { ...base, arrows: [{ start: [0, 0], end: [1, 1], label: "up" }], trail: points };
    const text = svgOf(drawn as never, VIEW);
    expect(text).toContain('<circle cx="300" cy="200" r="4" fill="red"><title>&lt;b></title></circle>');
    expect([text.split("<polygon").length, text.split("<line").length, text.includes(">up</text>")]).toEqual([
      2,
      2,
      true,
    ]);
    expect(text).toContain('<polyline points="300,200 ');
    expect(svgOf({ ...drawn, hulls: true } as never, VIEW).split("<polygon")).toHaveLength(4);
    const near = svgOf(drawn as never, { ...VIEW, camera: { zoom: 2, x: 10, y: 0 } });
    expect(near).toContain('<circle cx="310" cy="200"');
  });
});

describe("the story", () => {
  const point = (...xs: number[]) => xs.map((x) => [x, 0]);
  const layers = aligned([point(0, 1, 2, 3), point(-2, 2, 0, 2)]);
  const found = { layers, best: 1, input: 0.5, reached: 0.9, along: false, positive: [false, true], poles: { positive: "warm", negative: "gloomy" }, plain: "a", steered: "b", against: false, prompt: "p" }; // biome-ignore format: one line

  it("goes from the words to the layer that tells them apart, then shows the arrow and both answers", () => {
    expect(sceneAt(found, 0, 1).points).toEqual(layers[0]?.points.slice(0, 2));
    expect(sceneAt(found, 1, 1).points).toEqual(layers[1]?.points.slice(0, 2));
    expect(sceneAt(found, 1, 1).arrows).toEqual([]);
    const arrow = sceneAt(found, 2, 0).arrows[0];
    expect([arrow?.start, arrow?.end]).toEqual(layers[1]?.points.slice(0, 2));
    expect(sceneAt(found, 3, 1).ways?.map((way) => way.points.at(-1))).toEqual(layers[1]?.points.slice(2));
  });
});
