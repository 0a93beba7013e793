import { type ComponentType, h, render } from "preact";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { change, draft, restoredDraft } from "../src/compare/draft";
import { PaneView } from "../src/compare/PaneView";
import { emptyPane, type Pane } from "../src/compare/panes";
import { addVector } from "../src/compare/store";
import { FakeElement } from "./fakePage";

let root: FakeElement;

beforeEach(() => {
  root = new FakeElement("main");
});

afterEach(() => render(null, root as never));

function show<P extends object>(component: ComponentType<P>, props: P): void {
  render(h(component as ComponentType, props), root as never);
}

/** A pane whose only answer has these tokens. */
function paneOf(name: string, ...texts: string[]): Pane {
  const tokens = texts.map((text, id) => ({ id, text }));
  return { ...emptyPane(name, 1), choices: [{ text: texts.join(""), tokens, finish: "stop" }] };
}

describe("an answer without words", () => {
  it("is called empty once it has ended", () => {
    show(PaneView, { pane: paneOf("normal"), base: undefined, title: "Normal" });
    expect(root.textContent).toContain("The answer is empty");
    show(PaneView, { pane: emptyPane("normal", 1), base: undefined, title: "Normal" });
    expect(root.textContent).toContain("Nothing yet");
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

  it("have no divergence of an answer that nothing steers", () => {
    show(PaneView, { pane: paneOf("prompt-only", "yes"), base: undefined, title: "Prompt only" });
    expect(facts()).not.toContain("KL");
    show(PaneView, { pane: paneOf("steered", "yes"), base: undefined, title: "Steered" });
    expect(facts()).toContain("KL");
  });
});

describe("the vectors of Compare", () => {
  it("have each vector once, however often it is added", () => {
    change(restoredDraft({ controls: [{ vector: "joy", strength: 3, on: false }] }));
    addVector({ name: "joy", layers: [], scale: {} } as never);
    expect(draft.value.controls).toMatchObject([{ vector: "joy", strength: 3, on: true }]);
    change(restoredDraft({}));
  });
});
