import { h, render } from "preact";
import { afterEach, beforeEach, expect, it } from "vitest";
import { keyRefusal, keyWanted, retrying, setKey } from "../src/api/client";
import { capabilities } from "../src/core/server";
import { TopBar } from "../src/frame/Frame";
import { FakeElement } from "./fakePage";

const model = { model: { name: "small", device: "cpu" } } as never;
let root: FakeElement;

beforeEach(() => {
  root = new FakeElement("header");
});

afterEach(() => {
  render(null, root as never);
  setKey(null);
  capabilities.value = null;
  retrying.value = 0;
});

function facts(): string {
  render(null, root as never);
  render(h(TopBar, {}), root as never);
  return root.find("strong").textContent;
}

it("says what is waited for while the model is not known", () => {
  expect(facts()).toBe("Connecting");
  keyWanted.value = true;
  expect(facts()).toBe("Waiting for a key");
  setKey("generator");
  keyRefusal.value = "this route needs the scope 'read'";
  expect(facts()).toBe("Not shown to this key");
});

it("says that a request waits because the server is busy", () => {
  capabilities.value = model;
  expect(facts()).toBe("small");
  retrying.value = 1;
  expect(facts()).toBe("Busy, trying again");
});
