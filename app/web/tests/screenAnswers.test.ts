import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ControlMore } from "../src/compare/ControlMore";
import { change, restoredDraft } from "../src/compare/draft";
import { Drift, Panes } from "../src/compare/Panes";
import { branchProblem, TokenDetails } from "../src/compare/PaneView";
import { readBack } from "../src/compare/readback";
import { emptyPane, type Pane } from "../src/compare/run";
import { SteeringPanel } from "../src/compare/SteeringPanel";
import { comparison } from "../src/compare/store";
import { library } from "../src/core/server";
import { held, refusal, settle } from "./fakeServer";
import { onScreen, paneOf, root, server, show } from "./onScreen";

const asked = { arms: [{ name: "steered", steering: [] }], max_tokens: 8, temperature: 1, top_p: 1, seed: 7 } as never;

onScreen();

beforeEach(() => {
  change(restoredDraft({ controls: [{ vector: "joy", strength: -1 }] }));
  comparison.asked.value = asked;
});

afterEach(() => {
  comparison.close();
  readBack.forget();
  library.data.value = null;
  change(restoredDraft({}));
});

/** A steered answer of one token, which carried 9 while it was written. */
function steeredPane(applied: readonly object[]): Pane {
  const top_logprobs = [{ id: 2, text: "no", logprob: -1 }];
  const token = { id: 1, text: "yes", logprob: -0.5, readout: { joy: 9 }, top_logprobs };
  const steering = { applied, warnings: [], record: { prompt: [5] } } as never;
  return { ...emptyPane("steered", 1), choices: [{ text: "yes", tokens: [token], finish: "stop" }], steering };
}

describe("several samples", () => {
  it("are read again without being asked for, and shown by what each says", async () => {
    server.on("POST /v1/readout", (body) => ({
      texts: (body as { texts: string[] }).texts.map((text) => ({
        tokens: [{ text }],
        readout: { joy: { 3: { mean: text.length, scores: [null] } } },
      })),
    }));
    const choices = ["a", "abc"].map((text) => ({ text, tokens: [{ id: 1, text }], finish: "stop" }));
    comparison.panes.value = [{ ...emptyPane("normal", 2), choices }];
    show(Panes, {});
    await vi.advanceTimersByTimeAsync(200);
    await settle();
    expect(server.bodies).toEqual([{ texts: ["a", "abc"], vectors: ["joy"] }]);
    expect(root.all().some((one) => one.given.get("aria-label") === "Plain: joy +2.00")).toBe(true);
    expect(root.all().filter((one) => one.localName === "circle")).toHaveLength(2);
  });
});

describe("the details of a token", () => {
  const details = (applied: readonly object[]) =>
    show(TokenDetails, { pane: steeredPane(applied), choice: 0, index: 0, onClose: () => {} });

  it("keep what the text says apart from what the steered stream carried", () => {
    const answers = new Map([["0 steered", { mean: 1, scores: [1] }]]);
    readBack.data.value = { asked, vector: "joy", answers };
    details([{ vector: "joy@1" }]);
    const cells = () => root.all().filter((one) => ["th", "td"].includes(one.localName)).map((one) => one.textContent); // biome-ignore format: one line
    expect(cells()).toEqual([
      "",
      "text says",
      "while it was written, with what steering added",
      "joy",
      "+1.00",
      "+9.00",
    ]);
    details([]);
    expect(cells()).toContain("while it was written");
  });

  it("say that an answer is written on, until it is there or has failed", async () => {
    details([]);
    const words = "Writing on from here";
    for (const [answer, shown] of [
      [{ choices: [{ text: " way" }] }, "no way"],
      [refusal(429, "overloaded", { "x-should-retry": "false" }), "refused: overloaded"],
    ] as const) {
      const late = held();
      server.on("POST /v1/generate", () => late.promise);
      root.find("button", "no").press();
      await settle();
      expect(root.textContent).toContain(words);
      late.give(answer);
      await settle();
      expect(root.textContent).toContain(shown);
      expect(root.textContent).not.toContain(words);
    }
  });
});

describe("an answer that goes on from another word", () => {
  const scope = { tokens: "all", phase: ["answer"] };
  const steering = [{ vector: "joy", strength: 1 }];

  it("is asked with the scope that was used: what stands before is steered as it was", async () => {
    comparison.asked.value = { arms: [{ name: "steered", steering }], max_tokens: 8 } as never;
    server.on("POST /v1/generate", () => ({ choices: [{ text: " way" }] }));
    const [token] = steeredPane([]).choices[0]!.tokens;
    const sent = async (applied: object, ...phases: string[]) => {
      const tokens = phases.map((phase) => ({ ...token, phase }));
      const pane = { ...steeredPane([applied]), choices: [{ text: "", tokens, finish: "stop" }] } as never as Pane;
      show(TokenDetails, { pane, choice: 0, index: phases.length - 1, onClose: () => {} });
      root.find("button", "no").press();
      await settle();
      return (server.bodies.at(-1) as { steering: unknown }).steering;
    };
    expect(await sent({ vector: "joy@1" }, "answer")).toEqual(steering);
    const later = { ...steering[0], scope: { tokens: "generated", phase: ["answer"] } };
    expect(await sent({ scope }, "thinking", "thinking")).toEqual([later]);
    const words = { ...steering[0], scope: { tokens: "prompt", phase: null, start: 2 } };
    expect(await sent({ scope }, "thinking", "answer", "answer")).toEqual([words, later]);
  });

  it("cannot be asked for where the words before would be steered otherwise, and the reason is shown", () => {
    const tokens = (name: string) => ({ scope: { tokens: name } });
    const when = (at: string) => ({ when: { vector: "joy", above: 0, at } });
    const free = [{}, tokens("all"), { scope }, when("token")];
    for (const part of free) expect(branchProblem(steeredPane([{ vector: "joy@1", ...part }]))).toBeNull();
    const roles = { scope: { tokens: "all", roles: ["user"] } };
    const others = [tokens("generated"), tokens("last"), roles, when("prompt"), when("prompt_mean"), { schedule: {} }];
    for (const part of others)
      expect(branchProblem(steeredPane([{ vector: "joy@1", ...part }]))).toContain("the condition of joy@1.");
    show(TokenDetails, { pane: steeredPane([roles]), choice: 0, index: 0, onClose: () => {} });
    expect(root.find("button", "no").given.has("disabled")).toBe(true);
    expect(root.textContent).toContain("No other word can be tried here");
  });
});

describe("the strength of a vector", () => {
  it("is shown with what acts of it, where the overall strength is another one than 1", async () => {
    library.data.value = { data: [{ name: "joy", layers: [3], scale: { "3": 1 } }], warnings: [] } as never;
    show(SteeringPanel, {});
    expect(root.textContent).not.toContain("−1.00 ×");
    change({ overall: 2 });
    await settle();
    expect(root.textContent).toContain("−1.00 × 2.00 = −2.00");
  });
});

describe("the layers of a vector", () => {
  it("are those that act, also once a run before has others than were typed last", async () => {
    const [control] = restoredDraft({ controls: [{ vector: "joy", layers: [12, 14] }] }).controls;
    const with_ = (layers: number[]) => show(ControlMore, { control: { ...control!, layers }, vector: undefined, set });
    const set = (part: { layers?: unknown }) => with_(part.layers as number[]);
    const field = () => root.all().find((one) => one.given.get("inputmode") === "numeric" || one.given.get("inputMode") === "numeric"); // biome-ignore format: one line
    with_([12, 14]);
    const type = async (value: string) => {
      field()?.fire("input", { currentTarget: { value } });
      await settle();
      return field()?.given.get("value");
    };
    expect([await type("16, 2"), await type("16,")]).toEqual(["16, 2", "16,"]);
    with_([12, 14]);
    await settle();
    expect(field()?.given.get("value")).toBe("12, 14");
  });
});

describe("a conversation in two threads", () => {
  it("shows how far each answer leans, thread by thread, once that is asked for", async () => {
    const question = { role: "user", content: "How are you?" };
    const said = { role: "assistant", content: "Well." };
    const threads = { normal: [question, said, question], steered: [question, said, question] };
    const turns = (...all: number[]) => ({ concepts: [{ turns: all.map((z) => ({ z })) }] });
    server.on("POST /v1/explain", () => ({ texts: [turns(0.2, 0.1), turns(0.2, 3.14)], warnings: [] }));
    comparison.panes.value = ["normal", "steered"].map((name) => paneOf(name, name));
    comparison.asked.value = { ...(asked as object), threads } as never;
    show(Drift, { titles: { steered: "Steered" } });
    root.find("button", "Read joy in every answer").press();
    await settle();
    expect(server.bodies).toMatchObject([
      { turns: true, vectors: ["joy"], texts: [{}, { 3: { content: "steered" } }] },
    ]);
    expect(root.find("table").textContent).toBe("turn 1turn 2normal+0.2+0.1Steered+0.2+3.1");
  });
});
