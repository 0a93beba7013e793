import { afterEach, describe, expect, it } from "vitest";
import type { CompareAnswer, Vector } from "../src/api/client";
import { type CodeKind, codeFor, literal } from "../src/compare/CodeDialog";
import {
  type Control,
  defaultStrength,
  dialFacts,
  instructionFor,
  intervention,
  parseLayers,
  restoredControl,
} from "../src/compare/controls";
import { change, compactDraft, compareBody, draft, restoredDraft, sweepBody } from "../src/compare/draft";
import { nothingMoved, reasonsFor } from "../src/compare/Panes";
import { sentenceOf } from "../src/compare/readback";
import { differences, emptyPane, PaneCollector } from "../src/compare/run";
import { decodeState, encodeState } from "../src/core/places";
import { capabilities, conceptList } from "../src/core/server";
import { atChance } from "../src/maths/strength";

const control = (part: Partial<Control> = {}): Control => restoredControl({ vector: "sentiment", ...part });
const piece = (arm: string, index: number, text: string, readout = {}) => ({
  arm,
  choice: 0,
  index,
  id: index,
  text,
  readout,
});

afterEach(() => {
  draft.value = restoredDraft(null);
});

describe("the strength that a control begins with", () => {
  const vector = (strength: number[], negative: number[]) =>
    ({ recommended: { layers: [0], strength, negative, basis: "measured" } }) as unknown as Vector;

  it("is within the measured range, however narrow that is", () => {
    expect(defaultStrength(vector([1, 3.67], [-1.67, -1.67]), [], -1)).toBe(-1.67);
    expect(defaultStrength(vector([1, 3.67], [-1.67, -1.67]), [], 1)).toBe(2.3);
    expect(defaultStrength(vector([0.55, 0.55], [-0.55, -0.55]), [], 1)).toBe(0.55);
  });
});

describe("a shared dose", () => {
  it("is asked for by an add at named layers only", () => {
    expect(intervention(control({ layers: [3, 5], shareDose: true }), 1)).toMatchObject({ share_dose: true });
    const without = [{ layers: "recommended" as const }, { layers: [3, 5], operation: "ablate" as const }];
    for (const part of without)
      expect(intervention(control({ ...part, shareDose: true }), 1).share_dose).toBeUndefined();
  });

  it("is shown as that of the recommended layers", () => {
    const layers = { layers: [0, 1], recommended: { layers: [1] }, scale: { "0": 1, "1": 2 } };
    const vector = { name: "sentiment", ...layers } as unknown as Vector;
    const shown = (part: Partial<Control>) => dialFacts(vector, control(part), [1, 10], 0.2).dose;
    expect(shown({ layers: "all" })).toBeCloseTo(1);
    expect(shown({ layers: "all", shareDose: true })).toBeCloseTo(0.2);
  });
});

describe("the word at a slider", () => {
  it("and the dose are of the strength that acts, which the overall strength multiplies", () => {
    const recommended = { layers: [0], strength: [1, 3], negative: [-3, -1], basis: "measured" };
    const vector = { name: "sentiment", layers: [0], recommended, scale: { "0": 1 } } as unknown as Vector;
    const shown = (overall: number) => dialFacts(vector, control({ strength: -2 }), [10], 0.2, overall);
    expect([0, 0.5, 1, 2].map((overall) => shown(overall).word)).toEqual([
      "off",
      "a little",
      "clearly",
      "may become incoherent",
    ]);
    expect(shown(2).dose).toBeCloseTo(0.4);
  });
});

describe("interventions", () => {
  it("send only what an operation takes, multiplied by the overall strength", () => {
    expect(intervention(control({ strength: -1.5 }), 2)).toEqual({
      vector: "sentiment",
      operation: "add",
      strength: -3,
    });
    expect(intervention(control({ operation: "ablate" }), 2)).toEqual({ vector: "sentiment", operation: "ablate" });
    expect(intervention(control({ operation: "clamp", low: 0, strength: 9 }), 2)).toEqual({
      vector: "sentiment",
      operation: "clamp",
      low: 0,
    });
  });

  it("contain layers, tokens, schedule and condition when they differ from the usual", () => {
    const when = { vector: "formality", side: "below", bound: 0.5, at: "token" } as const;
    expect(intervention(control({ layers: [3], tokens: "generated", endsAfter: 8, when }), 1)).toMatchObject({
      layers: [3],
      scope: { tokens: "generated" },
      schedule: { kind: "linear", to: 0, tokens: 8 },
      when: { vector: "formality", below: 0.5, at: "token" },
    });
  });

  it("act inside a block, and remove an attention head in place of a vector", () => {
    const attention: Partial<Control> = { hook: "attention", operation: "ablate", layers: [3], head: 2 };
    expect(intervention(control(attention), 1)).toEqual({
      operation: "ablate",
      head: 2,
      hook: "attention",
      layers: [3],
    });
    expect(intervention(control({ ...attention, hook: "mlp" }), 1)).toMatchObject({ vector: "sentiment", hook: "mlp" });
  });

  it("count nats where the layer of the vector is calibrated, and the dial and the dose follow", () => {
    const vector = { name: "sentiment", layers: [0], recommended: { layers: [0] }, scale: { "0": 1 }, kl: { "0": [-4, 2] } }; // biome-ignore format: one line
    const facts = (part: Partial<Control>) => dialFacts(vector as unknown as Vector, control({ unit: "kl", ...part }), [10], 0.2); // biome-ignore format: one line
    expect(intervention(control({ unit: "kl", strength: 0.7 }), 1)).toMatchObject({ unit: "kl", strength: 0.7 });
    expect(facts({ strength: 1 })).toMatchObject({ positive: { high: 1, measured: true }, word: "a lot", dose: 0.2 });
    expect(facts({ strength: -0.5 }).dose).toBeCloseTo(0.2);
  });

  it("name the tokens of a role, and ids", () => {
    expect(intervention(control({ role: "user", tokenIds: [5, 9] }), 1).scope).toEqual({
      roles: ["user"],
      token_ids: [5, 9],
    });
    expect(intervention(control({}), 1).scope).toBeUndefined();
  });

  it("read layers as a person writes them", () => {
    expect(parseLayers("14, 12 12")).toEqual([12, 14]);
    expect(parseLayers("10-15")).toEqual({ from: 10, to: 16 });
    expect([parseLayers("15-10"), parseLayers("x"), parseLayers("")]).toEqual([null, null, null]);
  });
});

describe("the draft", () => {
  it("lists no more alternatives than the server does", () => {
    expect(compareBody(draft.value, "").logprobs).toBe(5);
    capabilities.value = { limits: { max_top_logprobs: 2 } } as never;
    expect(compareBody(draft.value, "").logprobs).toBe(2);
    capabilities.value = null;
  });

  it("makes the three arms, and a sweep with the unsteered arm as baseline", () => {
    change({ controls: [control({ strength: 1 })], system: "Be brief." });
    const body = compareBody(draft.value, "Be gloomy.");
    expect(body.arms.map((arm) => arm.name)).toEqual(["normal", "steered", "prompt-only"]);
    expect(body.arms[2]?.system).toBe("Be brief.\nBe gloomy.");
    expect(body.readout).toEqual(["sentiment"]);
    const sweep = sweepBody(draft.value, draft.value.controls[0]!.id, [-1, 0, 1]);
    expect(sweep.arms.map((arm) => arm.steering)).toMatchObject([[{ strength: -1 }], [], [{ strength: 1 }]]);
    expect(sweep.baseline).toBe("0");
  });

  it("gives each thread its own answers once they have any, and a thread that has none the plain ones", () => {
    const turns = [{ prompt: "Hello?", answers: { normal: "Hi.", steered: "Go away." } }];
    change({ controls: [control({ strength: -1 })], turns, prompt: "And now?" });
    const said = (arm: string) => compareBody(draft.value, "Be gloomy.").threads?.[arm]?.map(({ content }) => content);
    expect(said("normal")).toEqual(["Hello?", "Hi.", "And now?"]);
    expect(said("steered")).toEqual(["Hello?", "Go away.", "And now?"]);
    expect(said("prompt-only")).toEqual(["Hello?", "Hi.", "And now?"]);
    expect(restoredDraft(JSON.parse(JSON.stringify(compactDraft(draft.value)))).turns).toEqual(turns);
  });

  it("has no prompt-only arm for a text that is continued", () => {
    change({ raw: true });
    expect(compareBody(draft.value, "Be gloomy.").arms).toHaveLength(1);
  });

  it("survives the way through an address, and refuses what is no draft", () => {
    change({ prompt: "Grüße", controls: [control({ strength: -2, layers: [4, 5] })], overall: 0.5 });
    const back = restoredDraft(decodeState(encodeState(compactDraft(draft.value))));
    expect({ ...back, controls: [] }).toEqual({ ...draft.value, controls: [] });
    expect(back.controls[0]).toMatchObject({ vector: "sentiment", strength: -2, layers: [4, 5], tokens: "all" });
    expect(restoredDraft("text")).toEqual(restoredDraft(null));
  });

  it("takes from an address only what is of the right kind", () => {
    const message = { role: "user", content: "Hello" };
    const wrong = {
      prompt: 1,
      history: 5,
      seed: "x",
      reader: {},
      sampling: { n: "2" },
      controls: [null, { on: true }],
    };
    expect(restoredDraft(wrong)).toEqual(restoredDraft(null));
    const partly = { ...wrong, history: [message, 7], instruction: "Be kind.", sampling: { n: 2, top_p: null } };
    expect(restoredDraft(partly)).toMatchObject({
      history: [message],
      instruction: "Be kind.",
      sampling: { n: 2, top_p: 1 },
    });
  });

  it("takes of each vector only what is of the right kind", () => {
    const when = { vector: "joy", side: "above", bound: 1, at: "token" };
    const right = { head: 2, low: -1, endsAfter: 8, role: "user", tokenIds: [4], to: "joy", when, layers: [3] };
    const restored = (part: object) => restoredDraft({ controls: [{ vector: "joy", ...part }] }).controls[0];
    expect(restored(right)).toMatchObject(right);
    for (const layers of ["all", { from: 1, to: 3 }]) expect(restored({ layers })?.layers).toEqual(layers);
    const { id: _, ...usual } = restored({})!;
    const wrong = { strength: "0.5", layers: null, on: 1, head: "2", role: 3, tokenIds: ["4"], when: { vector: 1 }, low: {} }; // biome-ignore format: one line
    for (const part of [wrong, { layers: [null] }, { layers: {} }, { layers: "some" }])
      expect(restored(part)).toMatchObject(usual);
  });
});

describe("PaneCollector", () => {
  const answer = {
    arms: [
      { name: "normal", choices: [{ index: 0, text: "I am glad", finish_reason: "stop", tokens: [] }], steering: {} },
    ],
  } as unknown as CompareAnswer;

  it("appends tokens to their arm and leaves the other panes untouched", () => {
    const collector = new PaneCollector(["normal", "steered"], 1);
    expect(collector.isEmpty).toBe(true);
    const [normal] = collector.current();
    collector.take("token", piece("steered", 0, "I"));
    collector.take("token", piece("steered", 1, " am"));
    const [same, steered] = collector.current();
    expect(same).toBe(normal);
    expect(steered?.choices[0]?.text).toBe("I am");
    expect(collector.isEmpty).toBe(false);
  });

  it("keeps an arm's error to its pane and replaces all panes by the final answer", () => {
    const collector = new PaneCollector(["normal", "steered"], 1);
    collector.take("error", { arm: "steered", error: { message: "too strong", code: "dose_exceeded" } });
    expect(collector.current().map((pane) => pane.error)).toEqual([null, "too strong"]);
    collector.take("done", answer);
    expect(collector.current()[0]?.choices[0]).toMatchObject({ text: "I am glad", finish: "stop" });
  });

  it("marks the tokens that the baseline does not have", () => {
    const collector = new PaneCollector(["a", "b"], 1);
    for (const [index, text] of ["I", " am", " sad"].entries()) collector.take("token", piece("b", index, text));
    for (const [index, text] of ["I", " am", " glad"].entries()) collector.take("token", piece("a", index, text));
    const [a, b] = collector.current();
    expect(differences(b!, a!, 0)).toEqual([false, false, true]);
  });
});

describe("the sentence above an answer", () => {
  const measured = (perplexity: number, mean: number) => ({ perplexity, readout: { sentiment: { mean } } }) as never;
  const base = { ...emptyPane("normal", 1), metrics: measured(5, 0) };
  const pane = (perplexity: number, mean: number, interval: number[] | null) =>
    ({
      ...emptyPane("steered", 1),
      metrics: measured(perplexity, mean),
      against: { readout_shift: { sentiment: { mean, interval } } },
    }) as never;

  it("says the pole, the measured amount and the fluency", () => {
    conceptList.data.value = [
      {
        name: "sentiment",
        kind: "starter",
        positive: "warm",
        negative: "gloomy",
        description: "",
        pairs: 1,
        measured: {},
      },
    ];
    expect(sentenceOf(pane(5.2, 0.65, [0.45, 0.85]), base, "sentiment")).toBe("Clearly more “warm” (+0.65 ± 0.20), as fluent as before"); // biome-ignore format: one line
    expect(sentenceOf(pane(9, -0.5, null), base, "sentiment")).toBe("More “gloomy” (−0.50), less fluent");
    expect(sentenceOf(pane(5, 0.08, [-0.17, 0.33]), base, "sentiment")).toBe("No sure effect on sentiment (+0.08 ± 0.25), as fluent as before"); // biome-ignore format: one line
    expect(sentenceOf(base, base, "sentiment")).toBeNull();
  });

  it("of a thread with a history of its own compares what both threads say", () => {
    const own = { ...emptyPane("steered", 1), metrics: measured(5, 0.4) };
    expect(sentenceOf(own, base, "sentiment")).toContain("(+0.40)");
  });
});

describe("why nothing happened", () => {
  const pane = (against: object, applied: object[] = []) =>
    ({ name: "steered", choices: [], metrics: null, error: null, against, steering: { applied } }) as never;
  const vector = {
    layers: [1],
    recommended: { layers: [1] },
    quality: { layers: { "1": { auroc_interval: [0.4, 0.9] } } },
  };

  it("is asked when the text is the same, or reads no differently", () => {
    expect(nothingMoved(pane({ first_divergence: [null, null], readout_shift: {} }), "s")).toBe(true);
    const shift = (interval: number[]) => ({ first_divergence: [2], readout_shift: { s: { mean: 1, interval } } });
    expect(nothingMoved(pane(shift([-0.1, 2])), "s")).toBe(true);
    expect(nothingMoved(pane(shift([0.1, 2])), "s")).toBe(false);
  });

  it("names dose, condition, layers and a vector at chance", () => {
    const when = { vector: "s", side: "above", bound: 1, at: "prompt" } as const;
    const applied = (fired: boolean) => [{ vector: "sentiment@2", fired, relative_dose: { "1": 0.01 } }];
    const remedies = (part: Partial<Control>, fired: boolean) =>
      reasonsFor(pane({}, applied(fired)), [control(part)], 1, () => vector as unknown as Vector).map(
        (one) => one.remedy,
      );
    expect(remedies({}, true)).toEqual(["stronger", null]);
    expect(remedies({ when }, false)).toEqual(["no-condition", null]);
    expect(remedies({ layers: "all" }, true)).toEqual(["stronger", "recommended-layers", null]);
    expect(remedies({ on: false }, true)).toEqual(["switch-on"]);
  });

  it("takes a vector of two topics, which has no interval, by its AUROC", () => {
    const of = (auroc: number | null) => ({ ...vector, quality: { layers: { "1": { auroc, auroc_interval: null } } } });
    const found = [0.4, 0.5, 0.6, null].map((auroc) => atChance(of(auroc) as unknown as Vector));
    expect(found).toEqual([true, true, false, false]);
  });
});

describe("words and code", () => {
  it("instruct toward the pole that the strength points to", () => {
    conceptList.data.value = [
      {
        name: "sentiment",
        kind: "starter",
        positive: "warm",
        negative: "gloomy",
        description: "",
        pairs: 1,
        measured: {},
      },
    ];
    expect(instructionFor([control({ strength: -1 })], new Map())).toContain("gloomy");
    expect(instructionFor([control({ strength: 1 })], new Map())).toContain("warm");
    expect(instructionFor([control({ on: false })], new Map())).toBe("");
  });

  it("quote a prompt for the shell and for Python", () => {
    change({ prompt: "It's \"so\" \\ 'quoted'\n", controls: [control()] });
    const code = (kind: CodeKind) => codeFor(kind, draft.value, compareBody(draft.value, ""), { origin: "http://127.0.0.1:1", model: "m" }); // biome-ignore format: one line
    expect(code("curl")).toContain("It'\\''s");
    expect(code("openai")).toContain('model="m"');
    expect([code("openai"), code("profile")].map((text) => text.includes("extra_body"))).toEqual([true, false]);
    expect(literal({ a: [true, null, 1.5], b: { c: "x" } })).toBe('{"a": [True, None, 1.5], "b": {"c": "x"}}');
  });
});
