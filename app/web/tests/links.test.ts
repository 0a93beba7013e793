import "./fakeAddress";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { open } from "../src/core/places";
import { followLink } from "../src/frame/ShareLink";
import { kind, readState, restoreRead, text } from "../src/read/store";
import { restoreLink } from "../src/space/Space";
import { storyOver, storyShown } from "../src/space/Story";
import { ownText, setName, settings } from "../src/space/store";
import { back } from "./fakeAddress";
import { FakeServer } from "./fakeServer";

const LINK = "GET /v1/links/aaaa";
let server: FakeServer;
let leave: () => void = () => {};

beforeEach(() => {
  server = new FakeServer();
});

afterEach(() => {
  leave();
  vi.unstubAllGlobals();
});

/** Opens Read, as its component does. */
async function openRead(go: () => void): Promise<void> {
  go();
  leave = followLink("read", restoreRead, readState);
  await new Promise((resolve) => setTimeout(resolve, 50));
}

async function openLink(): Promise<void> {
  await openRead(() => {
    location.hash = "#/read?link=aaaa";
  });
}

function openCompare(): void {
  open("compare");
  leave();
}

describe("a link to Read", () => {
  beforeEach(async () => {
    server.on(LINK, () => ({ view: "read", url: "/#/read?link=aaaa", state: { text: "of the link" } }));
    await openLink();
    expect([kind.value, text.value]).toEqual(["text", "of the link"]);
  });

  it("stays in the address while nothing is changed", async () => {
    openCompare();
    await openRead(back);
    expect([location.hash, text.value]).toEqual(["#/read?link=aaaa", "of the link"]);
  });

  it("leaves the address after a change, so that the way back keeps the change", async () => {
    text.value = "rewritten";
    expect(location.hash).toBe("#/read");
    openCompare();
    await openRead(back);
    expect([location.hash, text.value]).toEqual(["#/read", "rewritten"]);
  });

  it("can be opened again after a change", async () => {
    text.value = "rewritten";
    leave();
    await openLink();
    expect(text.value).toBe("of the link");
  });

  it("stays in the address when it is opened a second time in the same view", async () => {
    kind.value = "conversation";
    text.value = "rewritten";
    expect(location.hash).toBe("#/read");
    location.hash = "#/read?link=aaaa";
    await vi.waitFor(() => expect([kind.value, text.value]).toEqual(["text", "of the link"]));
    expect(location.hash).toBe("#/read?link=aaaa");
    text.value = "rewritten";
    expect(location.hash).toBe("#/read");
  });
});

describe("a link to Space", () => {
  it("leaves the address when its own texts are changed", async () => {
    server.on(LINK, () => ({ view: "space", url: "/#/space?link=aaaa", state: { set: "own", texts: "a\nb" } }));
    location.hash = "#/space?link=aaaa";
    storyOver.value = false; // a first visit
    leave = followLink("space", restoreLink, settings);
    await vi.waitFor(() => expect([setName.value, ownText.value]).toEqual(["own", "a\nb"]));
    expect(location.hash).toBe("#/space?link=aaaa");
    ownText.value = "a\nb\nc";
    expect([location.hash, storyShown()]).toEqual(["#/space", false]); // the tool stays
  });
});
