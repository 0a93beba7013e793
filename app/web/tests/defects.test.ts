import "./fakeAddress";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { setKey, type Vector } from "../src/api/client";
import { change, draft, followAddress, restoredDraft } from "../src/compare/draft";
import { isLive } from "../src/compare/gallery";
import { Panes, WhyNothing } from "../src/compare/Panes";
import { PaneView, TokenDetails } from "../src/compare/PaneView";
import { readBack } from "../src/compare/readback";
import { ComparisonRun, emptyPane, type Pane } from "../src/compare/run";
import { SteeringPanel } from "../src/compare/SteeringPanel";
import { closeSweep, comparison, inspecting, stale, sweep, sweepStale, swept } from "../src/compare/store";
import { jobs, Task, tasks } from "../src/core/jobs";
import { open } from "../src/core/places";
import { capabilities, conceptList, describePoles, library, load, polesOf } from "../src/core/server";
import { workWords } from "../src/frame/Frame";
import { Keys } from "../src/library/admin/Keys";
import { fresh, keys, revokeKey } from "../src/library/admin/store";
import Make from "../src/make/Make";
import { addText, rows, sources } from "../src/make/store";
import { measureSeconds, measureSize } from "../src/make/work";
import { overlap, placeLabels } from "../src/maths/geometry";
import { isShown } from "../src/maths/strength";
import { looksLikePairs, visible } from "../src/maths/text";
import { steerAgainst } from "../src/read/Read";
import { reading, standoutsOf } from "../src/read/store";
import { Separability } from "../src/space/Playhead";
import { drawingWords } from "../src/space/SpaceControls";
import * as space from "../src/space/store";
import { events, held, refusal, settle } from "./fakeServer";
import { onScreen, paneOf, root, server, show } from "./onScreen";

onScreen();

const measured = (name: string, strength: number[] | null, negative: number[] | null, warnings: string[] = []) =>
  ({
    name,
    id: `${name}@1`,
    layers: [1],
    scale: { "1": 1 },
    description: "",
    recommended: { layers: [1], strength, negative, basis: "measured" },
    quality: { dose_response: [], warnings, layers: {} },
  }) as unknown as Vector;

const put = (...list: object[]) => library.put({ data: list as Vector[], warnings: [] });

beforeEach(() => {
  vi.stubGlobal("matchMedia", () => ({ matches: true }));
  vi.stubGlobal("requestAnimationFrame", (work: () => void) => setTimeout(work));
});

afterEach(() => {
  comparison.close();
  closeSweep();
  readBack.forget();
  inspecting.value = false;
  library.forget();
  conceptList.forget();
  tasks.value = [];
  jobs.forget();
  capabilities.value = null;
  load.value = null;
  setKey(null);
  change(restoredDraft({}));
});

describe("B2: the key of this tab", () => {
  beforeEach(() => {
    capabilities.value = { key: { id: "k", name: "boss", scopes: ["admin"] }, limits: {} } as never;
    keys.data.value = { data: [{ id: "k", name: "boss", scopes: ["admin"], limits: {} } as never] };
    setKey("secret");
  });

  afterEach(() => {
    keys.forget();
    fresh.value = [];
  });

  it("is marked, also one that was just made here", () => {
    show(Keys, {});
    expect(root.find("li").textContent).toContain("this tab's key");
    fresh.value = [{ key: { id: "other", key: "secret" } as never, replaces: null }];
    show(Keys, {});
    expect(root.find("li").textContent).not.toContain("this tab's key");
  });

  it("says what its end means, and the last admin key is revoked only after the refusal was shown", async () => {
    server.on("DELETE /v1/keys/k", () => refusal(409, "last_admin_key"));
    show(Keys, {});
    root.find("button", "Revoke boss").press();
    await settle();
    expect(root.find("li").textContent).toContain("the page can do nothing without another one");
    root.find("button", "Revoke boss").press();
    await settle();
    expect(root.find("li").textContent).toContain("refused: last_admin_key");
    expect(root.find("button", "although it is the last").textContent).toContain("boss");
    await vi.advanceTimersByTimeAsync(1000);
    server.on("DELETE /v1/keys/k", () => new Response(null, { status: 204 }));
    await revokeKey("k", "key k", true);
    expect(server.seen.filter((one) => one.startsWith("DELETE"))).toEqual(["DELETE /v1/keys/k", "DELETE /v1/keys/k?force=true"]); // biome-ignore format: one line
  });
});

describe("B3: the plain answer", () => {
  const steering = (fingerprint: string) => ({ applied: [], warnings: [], fingerprint });
  const arm = (name: string, text: string, mean: number, shift?: number) => ({
    name,
    choices: [{ text, tokens: [{ id: 1, text }], finish_reason: "stop" }],
    steering: steering(name),
    metrics: { readout: { joy: { mean } }, warnings: [] },
    ...(shift === undefined ? {} : { against_baseline: { readout_shift: { joy: { mean: shift, interval: null } } } }),
  });
  const body = (strength: number, seed: number) =>
    ({
      prompt: "Hi",
      seed,
      n: 1,
      baseline: "normal",
      arms: [{ name: "normal" }, { name: "steered", steering: [{ vector: "joy", strength }] }],
    }) as never;
  const answer = (...arms: object[]) => server.on("POST /v1/compare", () => events(["done", { arms }]));
  const texts = (run: ComparisonRun) => run.panes.value.map((pane) => pane.choices[0]?.text);

  it("is the same whatever is steered beside it, and shifts are held against it", async () => {
    const run = new ComparisonRun();
    answer(arm("normal", "sleek", 1), arm("steered", "glad", 3, 2));
    await run.start(body(1, 77));
    answer(arm("normal", "EconoVisa", 2), arm("steered", "gladder", 4, 2));
    await run.start(body(2, 77));
    expect(texts(run)).toEqual(["sleek", "gladder"]);
    expect(run.panes.value[1]?.against?.readout_shift.joy?.mean).toBe(3); // 4 - 1
    answer(arm("normal", "another", 2), arm("steered", "gladder", 4, 2));
    await run.start(body(2, 78));
    expect(texts(run)[0]).toBe("another");
  });

  it("is a new one once it is steered in another way, by the policy", async () => {
    const run = new ComparisonRun();
    answer(arm("normal", "sleek", 1), arm("steered", "glad", 3, 2));
    await run.start(body(1, 79));
    const other = { ...arm("normal", "stern", 1), steering: steering("with a policy") };
    answer(other, arm("steered", "glad", 3, 2));
    await run.start(body(1, 79));
    expect(texts(run)[0]).toBe("stern");
  });
});

describe("B4: pasted pairs", () => {
  it("are a table with commas, tabs or as JSON lines; a text of several lines is none", () => {
    for (const text of [
      "positive,negative\nArr matey,Hello friend\nAye,Yes",
      "good\tbad\nfine\tawful",
      '{"positive": "a", "negative": "b"}',
      '"One, two","Three, four"\n"Five","Six"',
    ])
      expect(looksLikePairs(text)).toBe(true);
    for (const text of ["one text", "Dear Ann,\nhow are you?\nYours, Bob", "a\nb", ""]) expect(looksLikePairs(text)).toBe(false); // biome-ignore format: one line
  });

  it("come into the table as rows", () => {
    rows.value = [{ positive: "", negative: "" }];
    addText("positive,negative\nArr matey,Hello friend\n");
    expect(rows.value[0]).toEqual({ positive: "Arr matey", negative: "Hello friend" });
  });
});

describe("B7: another picture", () => {
  const answer = { embedding: null, layers: [{ layer: 0, points: [[0, 0], [1, 1], [2, 0]] }], warnings: [] }; // biome-ignore format: one line

  it("is said to be drawn while the one before is seen, and is not chosen any more once it is stopped", async () => {
    server.on("POST /v1/latent-space", () => answer);
    space.setName.value = "own";
    space.ownText.value = "a\nb\nc";
    space.method.value = "tsne";
    await space.draw();
    server.on("POST /v1/latent-space", () => held().promise);
    space.method.value = "umap";
    const drawing = space.draw();
    await settle();
    expect(drawingWords()).toBe(
      "Drawing UMAP, which may take minutes for many texts. The picture is still t-SNE of own.",
    );
    space.stopDrawing();
    await drawing;
    expect([space.method.value, space.busy.value, space.drawn.value?.of.method]).toEqual(["tsne", false, "tsne"]);
    space.method.value = "pca";
    space.drawn.value = null;
  });
});

describe("B8: words that carry a concept", () => {
  it("are never those of the chat template", () => {
    const tokens = ["system", " named", " assistant", " lovely"].map((text) => ({ text }));
    const concepts = [
      { vector: "joy@1", layer: 1, score: 1, z: 3, tokens: [{ index: 1 }, { index: 3 }, { index: 2 }] },
    ];
    const [found] = standoutsOf({ texts: [{ concepts }] } as never, tokens, new Set([3]));
    expect(found?.carriers).toEqual(["lovely"]);
  });
});

describe("B9: the vector that reads the answers", () => {
  it("can be any of the library", async () => {
    put(measured("joy", [1, 2], [-2, -1]), measured("calm", [1, 2], [-2, -1]));
    change(restoredDraft({ controls: [{ vector: "joy" }, { vector: "calm" }] }));
    show(Panes, {});
    const choice = root.all().find((one) => one.localName === "label" && one.textContent.startsWith("Read with"));
    choice?.find("select").fire("change", { currentTarget: { value: "calm" } });
    await settle();
    expect([draft.value.reader, root.textContent.includes("Reading of calm")]).toEqual(["calm", true]);
  });
});

describe("B11: no vector is left to add", () => {
  it("because more are being made, or because all are in use", async () => {
    put(measured("joy", [1, 2], [-2, -1]));
    change(restoredDraft({ controls: [{ vector: "joy" }] }));
    show(SteeringPanel, {});
    expect(root.textContent).toContain("Every vector is added");
    const task = new Task({ place: "compare", kind: "starter", vector: "calm" }, () => held().promise as never);
    tasks.value = [task];
    await settle();
    expect(root.textContent).toContain("More vectors are being made");
    task.stop();
  });
});

describe("B12: what runs", () => {
  it("counts jobs, also where no request is in the batch", () => {
    expect([workWords(0, 3), workWords(1, 0), workWords(2, 1)]).toEqual([
      "3 running",
      "1 job, 0 requests running",
      "2 jobs, 1 request running",
    ]);
  });
});

describe("B13: a key that may not write", () => {
  it("is told so at the top of Make, and the button waits", () => {
    capabilities.value = { key: { id: "", name: "r", scopes: ["read", "generate"] }, methods: [], limits: {} } as never;
    show(Make, {});
    expect(root.textContent).toContain("The key of this tab may not make vectors: it lacks the scope write.");
    expect(root.find("button", "Find the vector").given.get("aria-disabled")).toBe("true");
  });
});

describe("B14: labels of the map of vectors", () => {
  it("lie neither on each other nor on points, also where points are close", () => {
    const points = [[100, 100], [104, 102], [99, 97], [102, 104], [400, 100], [402, 99]] as const; // biome-ignore format: one line
    const words = ["pirate", "pirate2", "toxicity", "sentiment", "refusal", "formality"];
    const boxes = placeLabels(points, words, 600, 300).map(([x, y], index) => {
      const half = ((words[index] ?? "").length * 6.6) / 2;
      return { left: x - half, right: x + half, top: y - 12, bottom: y + 3 };
    });
    for (const [index, box] of boxes.entries()) {
      expect(boxes.slice(index + 1).some((other) => overlap(box, other))).toBe(false);
      expect(points.some(([x, y]) => x > box.left && x < box.right && y > box.top && y < box.bottom)).toBe(false);
    }
  });
});

describe("B15: tokens of white space", () => {
  it("are seen", () => {
    expect([visible(" the"), visible(" "), visible("\n\n"), visible(""), visible("  a")]).toEqual(["the", "␣", "↵↵", "∅", "␣␣a"]); // biome-ignore format: one line
  });
});

describe("B17: steering against what a text says", () => {
  it("keeps the vectors that are set in Compare", () => {
    put(measured("joy", [1, 2], [-2, -1]), measured("calm", [1, 2], [-2, -1]));
    change(restoredDraft({ controls: [{ vector: "calm", strength: 2 }] }));
    steerAgainst("joy");
    expect(draft.value.controls.map((one) => [one.vector, one.strength])).toEqual([["calm", 2], ["joy", 1.5]]); // biome-ignore format: one line
    expect(draft.value.reader).toBe("joy");
    open("compare");
  });

  it("turns a vector that is set there against the text, and has the system message in its own field", () => {
    put(measured("joy", [1, 2], [-2, -1]));
    change(restoredDraft({ controls: [{ vector: "joy", strength: 1.5, on: false, unit: "kl" }], system: "Be long." }));
    const said = (role: "system" | "user" | "assistant", content: string) => ({ role, content });
    const messages = [said("system", "Be brief."), said("user", "Hi"), said("assistant", "Yes!"), said("user", "Why?")];
    reading.value = { source: { messages }, standouts: [{ vector: "joy", z: 5 }] } as never;
    steerAgainst("joy");
    expect(draft.value.controls).toMatchObject([{ vector: "joy", strength: -1.5, on: true, unit: "scale" }]);
    expect(draft.value).toMatchObject({ system: "Be brief.", history: messages.slice(1, 3), prompt: "Why?" });
    reading.value = null;
    open("compare");
  });
});

describe("B18: an answer with another word", () => {
  it("can take the place of the answer", async () => {
    const top_logprobs = [{ id: 2, text: "no", logprob: -1 }];
    const steering = { applied: [], warnings: [], record: { prompt: [5] } };
    const choices = [{ text: "yes", tokens: [{ id: 1, text: "yes", top_logprobs }], finish: "stop" }];
    const pane = { ...emptyPane("steered", 1), choices, steering } as never as Pane;
    comparison.asked.value = { arms: [{ name: "steered", steering: [] }], max_tokens: 8 } as never;
    comparison.panes.value = [pane];
    server.on("POST /v1/generate", () => ({ choices: [{ text: " way", tokens: [{ id: 3, text: " way" }], finish_reason: "stop" }] })); // biome-ignore format: one line
    show(TokenDetails, { pane, choice: 0, index: 0, onClose: () => {} });
    root.find("button", "no").press();
    await settle();
    root.find("button", "Use this answer").press();
    const shown = comparison.panes.value[0];
    expect([shown?.choices[0]?.text, shown?.choices[0]?.tokens.length, shown?.metrics]).toEqual(["no way", 2, null]);
  });
});

describe("B19: no sure effect", () => {
  const steered = (divergence: (number | null)[], shift: object) =>
    ({ ...emptyPane("steered", 1), against: { first_divergence: divergence, readout_shift: { joy: shift } } }) as never;

  it("is called so where the texts differ, with its size", () => {
    change(restoredDraft({ controls: [{ vector: "joy" }] }));
    show(WhyNothing, { steered: steered([3], { mean: 0.08, interval: [-0.17, 0.33] }) });
    expect(root.find("h3").textContent).toBe("No sure effect on joy (Δ +0.08 ± 0.25)");
    show(WhyNothing, { steered: steered([null], { mean: 0, interval: null }) });
    expect(root.find("h3").textContent).toBe("Steering changed nothing");
  });
});

describe("B20: the layer at which labels stand apart best", () => {
  const map = (layer: number, auroc: number) => ({ layer, points: [[0, 0]], separability: { auroc } });

  it("is the first of those with the same figure, and all of them are named", () => {
    const layers = [map(0, 0.7), map(1, 0.961), map(2, 0.9639), map(3, 0.958)];
    space.drawn.value = { set: { texts: ["a"], labels: ["x"] }, answer: { embedding: map(-1, 0.5), layers } } as never;
    vi.stubGlobal("getComputedStyle", () => ({ color: "" }));
    expect(space.bestMaps.value).toEqual([2, 3, 4]);
    space.playhead.value = 2;
    expect(Separability()?.props.children[1].props.children).toContain(
      "The best are layer 1, layer 2 and layer 3 with 0.96 each.",
    );
    space.drawn.value = null;
    space.playhead.value = 0;
  });
});

describe("B21: a long prompt", () => {
  it("is kept by this tab, and is not in the address", () => {
    open("compare");
    const leave = followAddress();
    change({ prompt: "short" });
    vi.advanceTimersByTime(400);
    expect(location.hash).toContain("?s=");
    change({ prompt: "word ".repeat(13_000) });
    vi.advanceTimersByTime(400);
    expect([location.hash, draft.value.prompt.length]).toEqual(["#/compare", 65_000]);
    leave();
  });
});

describe("what the page shows off", () => {
  it("can be asked live where the card of the vector does not say that it does not steer this way", () => {
    const list = [
      measured("sentiment", [1, 3], [-2, -1]),
      measured("toxicity", null, [-2, -1]),
      measured("refusal", [1, 2], [-2, -1], ["not shown to steer: its score moves"]),
      { ...measured("formality", [1, 2], null), quality: null },
    ];
    expect(list.map((one) => [isShown(one, 1), isShown(one, -1)])).toEqual([[true, true], [false, true], [false, false], [null, null]]); // biome-ignore format: one line
    library.data.value = { data: list, warnings: [] } as never;
    expect(isLive({ vector: "sentiment", stops: [{ strength: 1 }] } as never, 0)).toBe(false); // the concepts have not arrived
    conceptList.put([]);
    const live = (vector: string, strength: number) => isLive({ vector, stops: [{ strength }] } as never, 0);
    expect(list.map(({ name }) => [live(name, 1), live(name, -1)])).toEqual([[true, true], [false, true], [false, false], [true, true]]); // biome-ignore format: one line
    expect(live("absent", 1)).toBe(false);
  });

  it("does not call a strength clear where the card does not show that it steers", () => {
    put(measured("toxicity", null, [-2, -1]));
    change(restoredDraft({ controls: [{ vector: "toxicity", strength: 1.2 }] }));
    show(SteeringPanel, {});
    expect(root.textContent).toContain("not shown to steer this way");
    expect(root.textContent).not.toContain("clear");
  });
});

describe("the words of the poles", () => {
  it("are those of the concept, those of a description, or made of the name", () => {
    conceptList.put([
      { name: "joy", kind: "starter", positive: "glad", negative: "sad", description: "d", pairs: 1, measured: {} },
    ]);
    const named = (name: string, description: string) => polesOf(name, { name, description } as Vector);
    expect(named("joy", "")).toEqual({ positive: "glad", negative: "sad", given: true });
    expect(named("mine", describePoles("a pirate ", "a clerk"))).toMatchObject({
      positive: "a pirate",
      negative: "a clerk",
    });
    expect(named("mine", "something")).toEqual({ positive: "more mine", negative: "less mine", given: false });
  });

  it("stand at the ends of the dial, whose range ends shortly behind what was measured", () => {
    conceptList.put([
      { name: "joy", kind: "starter", positive: "glad", negative: "sad", description: "", pairs: 1, measured: {} },
    ]);
    put(measured("joy", [1, 3], [-1.5, -1]));
    change(restoredDraft({ controls: [{ vector: "joy", strength: 1 }] }));
    show(SteeringPanel, {});
    const dial = root.all().find((one) => one.given.get("aria-label") === "Dial of joy");
    expect([dial?.given.get("min"), dial?.given.get("max"), dial?.given.get("aria-valuetext")]).toEqual(["-1.3", "1.3", "+1.00, glad"]); // biome-ignore format: one line
    expect(root.textContent).toContain("sadglad");
    dial?.fire("input", { currentTarget: { valueAsNumber: -1 } });
    expect(draft.value.controls[0]?.strength).toBe(-1.5); // the measured end of the other side
  });
});

describe("answers of other settings", () => {
  const begin = () => {
    put(measured("joy", [1, 3], [-2, -1]));
    change(restoredDraft({ controls: [{ vector: "joy", strength: -2 }], instruction: "" }));
    server.on("POST /v1/compare", () => held().promise);
    show(SteeringPanel, {});
  };

  it("are asked anew once a dial is released", async () => {
    begin();
    const dial = root.all().find((one) => one.given.get("aria-label") === "Dial of joy");
    dial?.fire("input", { currentTarget: { valueAsNumber: 1.2 } });
    await settle();
    expect(server.seen).toEqual([]);
    dial?.fire("change");
    await settle();
    expect((server.bodies[0] as { arms: unknown[] }).arms[1]).toMatchObject({ steering: [{ strength: 3.6 }] });
    comparison.stop();
  });

  it("are dimmed, and say of which", async () => {
    begin();
    const arms = [{ name: "normal", choices: [], steering: {} }, { name: "steered", choices: [], steering: {} }]; // biome-ignore format: one line
    server.on("POST /v1/compare", () => events(["done", { arms }]));
    root.all().find((one) => one.given.get("aria-label") === "Dial of joy")?.fire("change"); // biome-ignore format: one line
    await vi.advanceTimersByTimeAsync(100);
    await settle();
    expect(stale.value).toBe(false);
    change({ overall: 2 });
    show(Panes, {});
    expect(stale.value).toBe(true);
    expect(root.textContent).toContain("These answers are of other settings (joy −2).");
  });
});

describe("a sweep", () => {
  const begin = (negative: number[] | null) => {
    put(measured("joy", [1, 3], negative));
    change(restoredDraft({ controls: [{ vector: "joy", strength: 2 }], instruction: "" }));
    const arms = [{ name: "0", choices: [{ text: "Well." }], steering: {} }];
    server.on("POST /v1/compare", () => events(["done", { arms }]));
    show(SteeringPanel, {});
    root.find("button", "Sweep the dial").press();
    return vi.advanceTimersByTimeAsync(100);
  };

  it("has the stops of the sides that the dial has", async () => {
    await begin(null);
    const { arms } = server.bodies[0] as { arms: { name: string }[] };
    expect(arms.map(({ name }) => name)).toEqual(["0", "1.2", "2.1", "3"]);
  });

  it("is dimmed once its answers are of other settings, and ends with its vector", async () => {
    await begin([-2, -1]);
    change({ controls: draft.value.controls.map((one) => ({ ...one, strength: 1 })) }); // the dial itself is swept
    expect(sweepStale.value).toBe(false);
    change({ prompt: "Something else" });
    await settle();
    expect([sweepStale.value, root.textContent.includes("of other settings")]).toEqual([true, true]);
    root.find("button", "Remove joy").press();
    expect([swept.value, sweep.panes.value]).toEqual([null, []]);
  });
});

describe("an answer", () => {
  it("is text, and its words are buttons only while they are inspected", async () => {
    const pane = paneOf("normal", "It", " is", " fine");
    show(PaneView, { pane, base: undefined, title: "Normal" });
    const buttons = () => root.all().filter((one) => one.given.get("role") === "button").length;
    expect([buttons(), root.find("p", "It is fine").textContent]).toEqual([0, "It is fine"]);
    inspecting.value = true;
    await settle();
    expect(buttons()).toBe(3);
  });

  it("stands under what the pane was told", () => {
    show(PaneView, {
      pane: paneOf("prompt-only", "Yes"),
      base: undefined,
      title: "Prompt only",
      about: "Told: “Be glad.”",
    });
    expect(root.textContent).toContain("Told: “Be glad.”");
  });
});

describe("a long measurement", () => {
  it("says how long it takes: as an earlier one did, else by the speed of the server", () => {
    const { answers, steps } = measureSize();
    const earlier = { kind: "dose_response", status: "succeeded", progress: { total: steps / 2 }, created_at: "2030-01-01T00:00:00Z", updated_at: "2030-01-01T00:05:00Z" }; // biome-ignore format: one line
    expect([answers, steps]).toEqual([1360, 2728]);
    expect(measureSeconds([earlier as never], 100)).toBe(600);
    expect(measureSeconds([], 100)).toBeCloseTo(653, 0);
    expect([measureSeconds([], null), measureSeconds([], null, "quick")]).toEqual([null, null]);
  });
});

describe("sources of vectors", () => {
  it("that the server cannot serve are not shown", () => {
    capabilities.value = { second_model: false, limits: {} } as never;
    expect(sources.value.map(([name]) => name)).toEqual(["pairs", "concept", "instruction"]);
    capabilities.value = { second_model: true, limits: {} } as never;
    expect(sources.value.map(([name]) => name)).toContain("transfer");
  });
});
