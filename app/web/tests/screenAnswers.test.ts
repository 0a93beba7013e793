import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { change, restoredDraft } from "../src/compare/draft";
import { Drift, Panes } from "../src/compare/Panes";
import { TokenDetails } from "../src/compare/PaneView";
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
