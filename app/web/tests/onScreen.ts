import { type ComponentType, h, render } from "preact";
import { afterEach, beforeEach, vi } from "vitest";
import { emptyPane, type Pane } from "../src/compare/run";
import { FakeElement } from "./fakePage";
import { FakeServer } from "./fakeServer";

/** Milliseconds in which everything has ended that waits for a timer. */
const ALL_MS = 1000;

/** What components are shown in. */
export const root = new FakeElement("main");

/** The server of the test that runs; it knows no route. */
export let server: FakeServer;

/** Gives each test of a file an empty page, a server of its own, and fake timers. */
export function onScreen(): void {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    server = new FakeServer();
  });
  afterEach(async () => {
    render(null, root as never);
    await vi.advanceTimersByTimeAsync(ALL_MS);
    vi.useRealTimers();
    vi.unstubAllGlobals();
  });
}

export function show<P extends object>(component: ComponentType<P>, props: P): void {
  render(h(component as ComponentType, props), root as never);
}

/** A pane whose only answer has these tokens. */
export function paneOf(name: string, ...texts: string[]): Pane {
  const tokens = texts.map((text, id) => ({ id, text }));
  return { ...emptyPane(name, 1), choices: [{ text: texts.join(""), tokens, finish: "stop" }] };
}
