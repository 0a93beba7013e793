import { afterEach, describe, expect, it, vi } from "vitest";
import type { Schemas } from "../src/api/client";
import { parse, placeHref, rememberState } from "../src/core/places";
import { gauges } from "../src/core/server";
import { warningsFor } from "../src/make/store";
import { aligned, alongVector, scaledMap } from "../src/maths/geometry";
import { turnsOf } from "../src/read/turns";
import { project } from "../src/space/draw";
import { cellOf } from "../src/space/LensPanel";
import { conceptTexts, parseTexts } from "../src/space/store";

describe("addresses of places", () => {
  afterEach(() => vi.unstubAllGlobals());

  it("name a place and its state, and open Compare for anything else", () => {
    expect(parse(placeHref("space", "abc"))).toEqual({ place: "space", state: "abc", link: null });
    expect(parse("#/read?link=aaaa")).toEqual({ place: "read", state: null, link: "aaaa" });
    expect(parse("#/nowhere")).toEqual({ place: "compare", state: null, link: null });
  });

  it("keep a link that was followed, while the place is still the former one", () => {
    const address = { hash: "#/admin" };
    vi.stubGlobal("location", address);
    vi.stubGlobal("history", { replaceState: (_state: null, _title: string, href: string) => (address.hash = href) });
    rememberState("compare", "abc");
    expect(address.hash).toBe("#/admin");
    address.hash = "#/compare";
    rememberState("compare", "abc");
    expect(address.hash).toBe("#/compare?s=abc");
  });
});

describe("gauges", () => {
  it("are read from Prometheus text without labelled samples", () => {
    const text = '# HELP x\nsteering_engine_running 2.0\nsteering_http_requests_total{route="/"} 5.0\n';
    expect([...gauges(text)]).toEqual([["steering_engine_running", 2]]);
  });
});

describe("warnings about pairs", () => {
  const pair = (positive: string, negative: string) => ({ positive, negative });

  it("say nothing before there is a pair", () => {
    expect(warningsFor([pair("", "")])).toEqual([]);
  });

  it("name too few, one-sided, equal and repeated pairs, lengths and topics", () => {
    const found = warningsFor([
      pair("a b c", "a b c"),
      pair("a b c", "a b c"),
      pair("only", ""),
      pair("word ".repeat(40), "zebra"),
    ]).join(" ");
    for (const part of ["only one side", "few", "same text", "twice", "lengths differ"]) expect(found).toContain(part);
    const apart = warningsFor([pair("cats purr softly", "engines need petrol")]);
    expect(apart.join(" ")).toContain("same topic");
  });

  it("are silent for enough good pairs", () => {
    const pairs = Array.from({ length: 20 }, (_, i) =>
      pair(`The trip number ${i} was good`, `The trip number ${i} was bad`),
    );
    expect(warningsFor(pairs)).toEqual([]);
  });
});

describe("maps", () => {
  it("scaling recovers distances that lie in a plane", () => {
    const points = [[0, 0], [3, 0], [0, 4], [3, 4]]; // biome-ignore format: a table
    const distance = points.map((a) => points.map((b) => Math.hypot(a[0]! - b[0]!, a[1]! - b[1]!)));
    const found = scaledMap(distance);
    for (const [i, a] of found.entries())
      for (const [j, b] of found.entries())
        expect(Math.hypot(a[0] - b[0], a[1] - b[1])).toBeCloseTo(distance[i]![j]!, 4);
  });

  it("along a vector the scores are the horizontal axis, and a layer without scores has none", () => {
    const layers = aligned([[[0, 1], [2, 3], [4, 5]], [[1, 1], [0, 3], [4, 0]]]); // biome-ignore format: a table
    const [first, second] = alongVector(layers, [undefined, [1, 2, 5]]);
    expect(first?.points.map((point) => point[0])).toEqual([0, 0, 0]);
    expect(second?.points.map((point) => point[0])).toEqual([-1, 0, 3]);
  });

  it("points far outside stay in the picture", () => {
    const view = { width: 200, height: 100, ratio: 1, yaw: 0, pitch: 0 };
    expect(project([0, 0], view).slice(0, 2)).toEqual([100, 50]);
    const [x, y] = project([1e6, -1e6], view);
    expect(x <= 200 && y <= 100).toBe(true);
  });
});

describe("texts of a map", () => {
  it("are lines, or lines with a label, with or without a header", () => {
    expect(parseTexts("One, two.\n\nThree\n")).toEqual({ texts: ["One, two.", "Three"], labels: null });
    expect(parseTexts("good day\ta\nbad day\tb")).toEqual({ texts: ["good day", "bad day"], labels: ["a", "b"] });
    expect(parseTexts('text,label\n"One, two",a\n')).toEqual({ texts: ["One, two"], labels: ["a"] });
  });

  it("of a concept have the words of its poles as labels", () => {
    const detail = { positive: "warm", negative: "cold", data: [{ positive: "x", negative: "y" }] };
    expect(conceptTexts(detail)).toEqual({ texts: ["x", "y"], labels: ["warm", "cold"], groups: ["pair 0", "pair 0"] });
  });
});

describe("turns", () => {
  it("are found among the tokens of a template, which belong to none", () => {
    const tokens = ["<|user|>", "\n", "Hi", " there", "<|end|>", "<|assistant|>", "\n", "Go", " away", "<|end|>"];
    const turns = turnsOf(
      tokens.map((text) => ({ text })),
      [
        { role: "user", content: "Hi there" },
        { role: "assistant", content: "Go away" },
      ],
    );
    expect(turns.map((turn) => turn.tokens.map((token) => token.index))).toEqual([[2, 3], [7, 8]]); // biome-ignore format: one line
  });

  it("show the characters of which the tokens hold parts only, in the last of these tokens", () => {
    const tokens = [
      "<|user|>",
      "So",
      " �",
      "�",
      "�",
      " 👍",
      " good",
      "<|end|>",
      "<|assistant|>",
      " sí",
      " �",
      "�",
      "!",
    ];
    const turns = turnsOf(
      tokens.map((text) => ({ text })),
      [
        { role: "user", content: "So 👩‍👧 👍 good" },
        { role: "assistant", content: "sí 🌦️!" },
      ],
    );
    expect(turns.map((turn) => turn.tokens.map((token) => token.text))).toEqual([
      ["So", " ", "", "👩‍👧", " 👍", " good"],
      [" sí", " ", "🌦️", "!"],
    ]);
  });

  it("show every token of a text that its tokens do not spell exactly", () => {
    expect(turnsOf([{ text: "�" }], [{ role: "text", content: "é" }])[0]?.tokens).toHaveLength(1);
  });
});

describe("the logit lens", () => {
  const prediction = (id: number, text: string) => [{ id, text, logprob: Math.log(0.5) }];
  const answer = {
    layers: [{ layer: 3, plain: [prediction(1, "a")], steered: [prediction(2, "b")] }],
  } as unknown as Schemas["LogitLensAnswer"];

  it("shows the plain or the steered prediction and whether they differ", () => {
    expect(cellOf(answer, 0, 0, "plain")).toMatchObject({ text: "a", changed: true });
    expect(cellOf(answer, 0, 0, "steered").text).toBe("b");
    expect(cellOf(answer, 0, 0, "plain").probability).toBeCloseTo(0.5);
  });
});
