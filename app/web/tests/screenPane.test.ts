import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { setKey } from "../src/api/client";
import { change, draft, restoredDraft } from "../src/compare/draft";
import { Panes } from "../src/compare/Panes";
import { PaneView } from "../src/compare/PaneView";
import { emptyPane } from "../src/compare/run";
import { SteeringPanel } from "../src/compare/SteeringPanel";
import { addVector, comparison, restoreRun, shade } from "../src/compare/store";
import { library } from "../src/core/server";
import { refusal, settle } from "./fakeServer";
import { onScreen, paneOf, root, server, show } from "./onScreen";

onScreen();

describe("an answer without words", () => {
  it("is called empty once it has ended", () => {
    show(PaneView, { pane: paneOf("normal"), base: undefined, title: "Normal" });
    expect(root.textContent).toContain("The answer is empty");
    show(PaneView, { pane: emptyPane("normal", 1), base: undefined, title: "Normal" });
    expect(root.textContent).toContain("Nothing yet");
  });
});

describe("the earlier turns of a pane", () => {
  it("are those of the answers that are shown, also once a new conversation was begun", () => {
    const turn = { prompt: "Who are you?", answers: { normal: "A model." } };
    const panes = [paneOf("normal", "Really.")];
    const asked = { arms: [] } as never;
    restoreRun({ id: 1, draft: restoredDraft({ turns: [turn] }), asked, panes, pinned: false });
    change({ turns: [] });
    show(PaneView, { pane: panes[0]!, base: undefined, title: "Normal" });
    expect(root.find("ol").textContent).toContain("Who are you?A model.");
    comparison.close();
  });
});

describe("the facts of a pane", () => {
  const facts = () => root.find("dl").textContent;

  it("say that the policy steers an answer too, also the one that is called normal", () => {
    const mandatory = [{ vector: "joy@1", operation: "add", strength: 2 }];
    const steering = { applied: [], mandatory, relative_dose_total: 0.14, warnings: [] } as never;
    show(PaneView, { pane: { ...paneOf("normal", "yes"), steering }, base: undefined, title: "Normal" });
    expect(facts()).toContain("dose0.14");
    expect(facts()).toContain("policysteers this answer too: joy@1 +2.00");
  });

  it("have the divergence of an answer that only the policy steers", () => {
    const mandatory = ["ablate", "rotate"].map((operation) => ({ vector: "joy@1", operation, strength: 0.5 }));
    const steering = { applied: [], mandatory, warnings: [] } as never;
    const against = { kl_mean: 0.4, readout_shift: {} } as never;
    show(PaneView, { pane: { ...paneOf("normal", "yes"), steering, against }, base: undefined, title: "Normal" });
    expect(facts()).toContain("KL0.40");
    expect(facts()).toContain("steers this answer too: ablate joy@1, rotate joy@1");
  });

  it("have no divergence of an answer that nothing steers", () => {
    show(PaneView, { pane: paneOf("prompt-only", "yes"), base: undefined, title: "Prompt only" });
    expect(facts()).not.toContain("KL");
    show(PaneView, { pane: paneOf("steered", "yes"), base: undefined, title: "Steered" });
    expect(facts()).toContain("KL");
  });
});

describe("what the answers say", () => {
  beforeEach(() => {
    change(restoredDraft({ controls: [{ vector: "joy" }] }));
    comparison.panes.value = [paneOf("normal", "yes")];
    comparison.asked.value = { arms: [] } as never;
    shade.value = "reading";
  });

  afterEach(() => {
    setKey(null);
    comparison.close();
    shade.value = "difference";
    change(restoredDraft({}));
  });

  it("is read again with a new key, after a refusal of the old one", async () => {
    server.on("POST /v1/readout", () => refusal(401, "invalid_api_key"));
    show(Panes, {});
    await vi.advanceTimersByTimeAsync(200);
    await settle();
    expect(root.textContent).toContain("refused: invalid_api_key");
    server.on("POST /v1/readout", () => ({ texts: [{ tokens: [{ text: "yes" }], readout: {} }] }));
    setKey("new");
    await vi.advanceTimersByTimeAsync(200);
    await settle();
    expect(root.textContent).not.toContain("refused");
    expect(root.textContent).not.toContain("Reading the answers again");
  });
});

describe("the vectors of Compare", () => {
  it("are not all in use as long as the library is not known", () => {
    change(restoredDraft({ controls: [{ vector: "joy" }] }));
    library.data.value = null;
    show(SteeringPanel, {});
    expect(root.textContent).not.toContain("Every vector is added");
    change(restoredDraft({}));
  });

  it("have each vector once, however often it is added", () => {
    change(restoredDraft({ controls: [{ vector: "joy", strength: 3, on: false }] }));
    addVector({ name: "joy", layers: [], scale: {} } as never);
    expect(draft.value.controls).toMatchObject([{ vector: "joy", strength: 3, on: true }]);
    change(restoredDraft({}));
  });
});
