import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { change, restoredDraft } from "../src/compare/draft";
import { Panes } from "../src/compare/Panes";
import { PaneView, TokenText } from "../src/compare/PaneView";
import { emptyPane } from "../src/compare/run";
import { Sweep } from "../src/compare/SteeringPanel";
import { comparison, inspecting, sweep } from "../src/compare/store";
import { jobs } from "../src/core/jobs";
import { capabilities, library } from "../src/core/server";
import { Jobs } from "../src/library/admin/Admin";
import { Similarity, VectorMap } from "../src/library/Similarity";
import { similar } from "../src/library/store";
import { Quotes } from "../src/make/Result";
import Read from "../src/read/Read";
import { chosen, layer, reading } from "../src/read/store";
import { Playhead } from "../src/space/Playhead";
import { Selection } from "../src/space/Selection";
import { SpaceControls } from "../src/space/SpaceControls";
import * as space from "../src/space/store";
import { FileButton } from "../src/ui/fields";
import { held, refusal, settle } from "./fakeServer";
import { onScreen, paneOf, root, server, show } from "./onScreen";

onScreen();

beforeEach(() => vi.stubGlobal("matchMedia", () => ({ matches: true })));
afterEach(() => {
  comparison.close();
  inspecting.value = false;
});

describe("the words of an answer", () => {
  const words = () => root.all().filter((one) => one.given.get("role") === "button");

  it("can be reached by the keyboard, also when the sample before had more of them", () => {
    const pane = paneOf("steered", "yes", " no");
    for (const [selected, reached] of [
      [null, 0],
      [1, 1],
      [7, 0],
    ] as const) {
      // biome-ignore format: a table
      inspecting.value = true;
      show(TokenText, { pane, base: undefined, choice: 0, selected, onSelect: () => {} });
      expect(words().map((one) => one.given.get("tabIndex"))).toEqual(
        [0, 1].map((at) => (at === reached ? "0" : "-1")),
      );
    }
  });

  it("have a name each, also where there is nothing to see", () => {
    inspecting.value = true;
    show(TokenText, { pane: paneOf("steered", "yes", "\n\n", " ", ""), base: undefined, choice: 0, selected: null, onSelect: () => {} }); // biome-ignore format: one line
    const names = words().map((one) => one.given.get("aria-label") ?? one.textContent);
    expect(names).toEqual(["yes", "line break", "space", "part of a character"]);
  });
});

describe("an arm that fails", () => {
  const alerts = () => root.all().filter((one) => one.given.get("role") === "alert").map((one) => one.textContent); // biome-ignore format: one line

  it("says so to a screen reader", () => {
    const pane = { ...emptyPane("steered", 1), error: "It broke." };
    show(PaneView, { pane, base: undefined, title: "Steered" });
    expect(alerts()).toEqual(["It broke."]);
  });

  it("says so in a sweep", () => {
    sweep.panes.value = [{ ...emptyPane("0", 1), error: "It broke." }];
    show(Sweep, { name: "joy", onPick: () => {} });
    expect(alerts()).toEqual(["It broke."]);
    sweep.close();
  });

  it("says so among the answers of a trial", async () => {
    const good = { choices: [{ text: "Fine." }] };
    const arms = ["-2", "0"].map((name) => ({ name, ...good }));
    const failed = { name: "2", choices: [], error: { message: "It broke." } };
    server.on("POST /v1/compare", () => ({ arms: [...arms, failed] }));
    show(Quotes, { vector: { id: "joy@1", name: "joy", layers: [], scale: {} } as never });
    await vi.advanceTimersByTimeAsync(100);
    await settle();
    expect(alerts()).toEqual(["It broke."]);
    expect(root.textContent).toContain("less joy (−2.00)Fine.");
  });

  it("asks the prompt that was typed again for another version of the vector", async () => {
    server.on("POST /v1/compare", () => ({ arms: [] }));
    const version = async (id: string) => {
      show(Quotes, { vector: { id, name: "joy", layers: [], scale: {} } as never });
      await vi.advanceTimersByTimeAsync(100);
      await settle();
    };
    await version("joy@1");
    root.find("input").fire("input", { currentTarget: { value: "Why?" } });
    await settle();
    await version("joy@1");
    await version("joy@2");
    const asked = server.bodies as { messages: { content: string }[] }[];
    expect(asked.map(({ messages }) => messages[0]?.content)).toEqual(["How was your day?", "Why?"]);
  });
});

describe("the legend of a reading", () => {
  it("has the middle between the poles, or what is usual where that is not known", async () => {
    vi.stubGlobal("ResizeObserver", class { observe = () => {}; disconnect = () => {}; }); // biome-ignore format: one line
    const tokens = [{ index: 0, text: "A" }, { index: 1, text: " day" }]; // biome-ignore format: one line
    const scores = new Map([["joy", new Map([[3, [null, 2]]])]]);
    reading.value = { source: { texts: ["A day"] }, turns: [{ role: "text", tokens }], scores, standouts: [], warnings: [] }; // biome-ignore format: one line
    [chosen.value, layer.value] = ["joy", 3];
    const shown = async (centred: boolean) => {
      library.data.value = { data: [{ name: "joy", centred }], warnings: [] } as never;
      show(Read, {});
      await settle();
      return root.all().find((one) => one.given.get("class")?.includes("legend"))?.textContent;
    };
    expect(await shown(true)).toBe("less joymiddlemore joy");
    expect(await shown(false)).toBe("less joyusual for this textmore joy");
    library.data.value = reading.value = chosen.value = layer.value = null;
  });
});

describe("the pane of a narrow screen", () => {
  it("is the chosen one, also when nothing is steered", async () => {
    change(restoredDraft({ instruction: "Be gloomy." }));
    show(Panes, {});
    const panes = () =>
      root
        .all()
        .find((one) => one.given.has("data-tab"))
        ?.given.get("data-tab");
    expect(panes()).toBe("normal");
    root.find("button", "Told in words").press();
    await settle();
    expect(panes()).toBe("prompt-only");
  });
});

describe("a file", () => {
  it("can be chosen again, and one that cannot be read is a problem", async () => {
    const problems: unknown[] = [];
    const taken: File[] = [];
    const take = async (file: File) => void taken.push(file);
    const unreadable = () => Promise.reject(new Error("gone"));
    const input = { value: "pairs.csv", files: [new File([], "pairs.csv")] };
    for (const one of [take, unreadable]) {
      show(FileButton, {
        children: "Open",
        accept: "",
        take: one,
        onProblem: (problem) => void problems.push(problem),
      });
      root.find("input").fire("change", { currentTarget: input });
      await settle();
    }
    expect([taken.length, input.value]).toEqual([1, ""]);
    expect(problems).toEqual([null, null, new Error("gone")]);
  });
});

/** Puts a map of 203 texts over three layers on the screen. */
function mapTexts(): void {
  const layers = [0, 1, 2].map((layer) => ({ layer, points: [[0, 0]] }));
  capabilities.value = { concepts: ["sentiment"], limits: {} } as never;
  space.error.value = null;
  const set = { texts: Array(203).fill("a"), labels: null };
  space.drawn.value = {
    set,
    answer: { embedding: null, layers },
    vector: "joy",
    of: { method: "pca", set: "sentiment" },
  } as never;
}

describe("a map of texts", () => {
  beforeEach(mapTexts);

  it("lets the arrow keys take the layer from a map that plays", async () => {
    space.playhead.value = 0;
    show(Playhead, {});
    space.playing.value = true;
    root.find("input").fire("keydown", { key: "ArrowRight" });
    expect([space.playhead.value, space.playing.value]).toEqual([1, false]);
  });

  it("says that it has more texts than it lists", () => {
    show(Selection, {});
    expect(root.textContent).toContain("and 3 more texts");
  });
});

describe("what is drawn", () => {
  beforeEach(mapTexts);

  it("is reported while it is on its way, and can be stopped while the texts are read", async () => {
    const late = held();
    server.on("GET /v1/concepts/sentiment", () => late.promise);
    space.setName.value = "sentiment";
    show(SpaceControls, {});
    const drawing = space.draw();
    await settle();
    expect(root.textContent).toContain("Drawing");
    root.find("button", "Stop").press();
    await drawing;
    await settle();
    expect([space.busy.value, space.error.value, server.seen.length]).toEqual([false, null, 1]);
    expect(root.textContent).not.toContain("Drawing");
  });

  it("forgets that scores could not be read once they are", async () => {
    space.vector.value = "joy";
    server.on("POST /v1/readout", () => refusal(422, "invalid_request"));
    show(SpaceControls, {});
    const colour = () => root.all().filter((one) => one.localName === "select")[2]?.fire("change", { currentTarget: { value: "score" } }); // biome-ignore format: one line
    colour();
    await settle();
    expect(space.scoresError.value).toMatchObject({ code: "invalid_request" });
    server.on("POST /v1/readout", () => ({ texts: [] }));
    colour();
    await settle();
    expect(space.scoresError.value).toBeNull();
  });
});

describe("a job", () => {
  it("is named by the button that cancels it and by its progress", () => {
    const progress = { done: 1, total: 2, message: "" };
    jobs.data.value = [{ id: "j", kind: "dose_response", status: "running", created_at: "", progress } as never];
    show(Jobs, {});
    expect(root.find("button").textContent).toBe("Cancel dose response");
    expect(root.find("progress").given.get("aria-label")).toBe("Progress of dose response");
    jobs.forget();
  });

  it("names the vector that it has made or measured", () => {
    jobs.data.value = [{ id: 1, kind: "extract", subject: "joy", status: "succeeded", created_at: "", progress: {} }] as never; // biome-ignore format: one line
    show(Jobs, {});
    expect(root.find("strong").textContent).toBe("extract joy");
    jobs.forget();
  });
});

describe("the map of vectors", () => {
  it("says how many vectors it has", () => {
    const names = ["joy", "grief", "awe"];
    library.data.value = { data: [...names, "new"].map((name) => ({ name })), warnings: [] } as never;
    similar.data.value = {
      names,
      cosine: names.map((one) => names.map((other) => Number(one === other))),
      warnings: ["left out"],
    };
    show(VectorMap, {});
    expect(root.textContent).toContain("The map has 3 of 4 vectors.");
    expect(root.textContent).toContain("left out");
    similar.data.value = null;
  });
});

describe("the table of similarities", () => {
  it("says how many vectors it has, and shows none that are not in the library any more", async () => {
    const names = Array.from({ length: 25 }, (_, index) => `v${index}`);
    for (const name of names) server.on(`GET /v1/vectors/${name}/similar`, () => ({ data: [] }));
    library.data.value = { data: names.map((name) => ({ name })), warnings: [] } as never;
    show(Similarity, {});
    root.find("button").press();
    await settle();
    expect(root.textContent).toContain("The table has 24 of 25 vectors.");
    library.data.value = { data: [{ name: "joy" }, { name: "v1" }], warnings: [] } as never; // those that another key may see
    await settle();
    expect(root.textContent).not.toContain("v0");
  });
});
