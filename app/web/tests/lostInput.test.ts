import "./fakeAddress";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { change, draft, followAddress, restoredDraft } from "../src/compare/draft";
import { open } from "../src/core/places";
import { back } from "./fakeAddress";

const WRITTEN_MS = 300;
let leave: () => void = () => {};

function enter(go: () => void): void {
  go();
  leave = followAddress();
}

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  draft.value = restoredDraft(null);
  enter(() => open("compare"));
});

afterEach(() => {
  leave();
  vi.useRealTimers();
});

/** Leaves Compare for another place, as a click on the rail does. */
function goAway(): void {
  open("make");
  leave();
}

describe("a prompt that is typed just before another place is opened", () => {
  beforeEach(() => {
    change({ prompt: "first" });
    vi.advanceTimersByTime(WRITTEN_MS);
    change({ prompt: "second" });
    goAway();
  });

  it("is there on the way back, and in the address from then on", () => {
    enter(back);
    expect(draft.value.prompt).toBe("second");
    vi.advanceTimersByTime(WRITTEN_MS);
    goAway();
    enter(back);
    expect(draft.value.prompt).toBe("second");
  });

  it("does not keep a later address that is the same from being restored", () => {
    enter(back);
    vi.advanceTimersByTime(WRITTEN_MS);
    change({ prompt: "first" });
    vi.advanceTimersByTime(WRITTEN_MS);
    goAway();
    change({ prompt: "elsewhere" });
    enter(back);
    expect(draft.value.prompt).toBe("first");
  });

  it("does not keep a later visit of another address from being restored", () => {
    enter(back);
    vi.advanceTimersByTime(WRITTEN_MS);
    const second = location.hash;
    change({ prompt: "third" });
    vi.advanceTimersByTime(WRITTEN_MS);
    location.hash = second;
    expect(draft.value.prompt).toBe("second");
  });
});

describe("a link with more than an address holds", () => {
  const long = "word ".repeat(1000);

  beforeEach(() => {
    leave();
    const state = { prompt: long };
    vi.stubGlobal("fetch", async () => Response.json({ view: "compare", url: "", state }));
    enter(() => {
      location.hash = "#/compare?link=aaaa";
    });
  });

  afterEach(() => vi.unstubAllGlobals());

  it("stays in the address until something is changed, and then does not come back", async () => {
    await vi.waitFor(() => expect(draft.value.prompt).toBe(long));
    vi.advanceTimersByTime(WRITTEN_MS);
    expect(location.hash).toBe("#/compare?link=aaaa");
    change({ seed: 12 });
    vi.advanceTimersByTime(WRITTEN_MS);
    expect(location.hash).toBe("#/compare");
    goAway();
    enter(back);
    await Promise.resolve();
    expect([draft.value.prompt, draft.value.seed]).toEqual([long, 12]);
  });
});

const session = new Map<string, string>();
const storage = {
  getItem: (name: string) => session.get(name) ?? null,
  setItem: (name: string, text: string) => session.set(name, text),
  removeItem: (name: string) => session.delete(name),
};

describe("what was typed", () => {
  beforeEach(() => {
    vi.stubGlobal("sessionStorage", storage);
    vi.resetModules();
  });

  afterEach(() => {
    session.clear();
    vi.unstubAllGlobals();
    vi.resetModules();
  });

  const page = async () => {
    vi.resetModules();
    const [compare, make, space, read] = await Promise.all([
      import("../src/compare/draft"),
      import("../src/make/store"),
      import("../src/space/store"),
      import("../src/read/store"),
    ]);
    return { compare, make, space, read };
  };

  it("outlives a reload of any place, and leaves nothing once it is as at first", async () => {
    const before = await page();
    before.compare.change({ prompt: "Why?" });
    before.make.setRow(0, { positive: "good" });
    before.make.sides.value = { positive: "a pirate", negative: "" };
    before.space.ownText.value = "one\ntwo";
    before.read.messages.value = [{ role: "user", content: "Hi" }];
    const { compare, make, space, read } = await page();
    expect([compare.draft.value.prompt, make.rows.value[0]]).toEqual(["Why?", { positive: "good", negative: "" }]);
    expect([make.sides.value.positive, space.ownText.value]).toEqual(["a pirate", "one\ntwo"]);
    expect(read.messages.value).toEqual([{ role: "user", content: "Hi" }]);
    space.ownText.value = "";
    expect([...session.keys()]).not.toContain("steering-server.texts");
  });

  it("is left out where it was kept by a page that kept something else", async () => {
    session.set("steering-server.pairs", '[{"positive": 1}]');
    session.set("steering-server.sides", "null");
    session.set("steering-server.texts", "no JSON");
    session.set("steering-server.draft", '{"prompt": 3, "seed": 5}');
    const { compare, make, space } = await page();
    expect([make.rows.value.length, make.sides.value.positive, space.ownText.value]).toEqual([3, "", ""]);
    expect([compare.draft.value.prompt, compare.draft.value.seed]).toEqual(["How is your new apartment?", 5]);
  });
});
