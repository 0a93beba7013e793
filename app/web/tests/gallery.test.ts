import "./fakeAddress";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { address, gallery } from "../src/compare/gallery";
import own from "../src/compare/gallery/qwen2.5-coder-0.5b.json?url";
import embedded from "../src/compare/gallery/smollm2-135m-instruct.json?url";
import { sourceWords } from "../src/compare/Landing";
import { capabilities, serverTrouble } from "../src/core/server";
import { FakeServer } from "./fakeServer";

const saved = (model: string) => ({ model, date: "", samples: 16, items: [] });
const serving = (name: string) => (capabilities.value = { model: { name }, limits: {} } as never);
let server: FakeServer;

beforeEach(() => {
  const answers = { [`GET ${own}`]: () => saved("qwen2.5-coder-0.5b"), [`GET ${embedded}`]: () => saved("smollm2-135m-instruct") }; // biome-ignore format: one line
  server = new FakeServer(answers);
});

afterEach(() => {
  capabilities.value = serverTrouble.value = null;
  gallery.forget();
  vi.unstubAllGlobals();
});

describe("the saved answers", () => {
  it("wait until the server has said which model it serves", async () => {
    const loaded = gallery.load();
    await new Promise((done) => setTimeout(done));
    expect(server.seen).toEqual([]);
    serving("qwen2.5-coder-0.5b");
    expect(await loaded).toEqual(saved("qwen2.5-coder-0.5b"));
    expect(server.seen).toEqual([`GET ${own}`]);
  });

  it.each([
    ["qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b, which this server runs"],
    ["smollm2-135m-instruct", "smollm2-135m-instruct, which this server runs"],
    ["another", "smollm2-135m-instruct, which comes with the server"],
  ])("of a server with %s are those of %s", async (model, words) => {
    serving(model);
    expect(sourceWords((await gallery.load())!)).toContain(`The saved answers are of ${words}.`);
  });

  it("are those of the embedded model while the server is not ready, and then those of its own", async () => {
    serverTrouble.value = "The model is loading.";
    expect(await gallery.load()).toEqual(saved("smollm2-135m-instruct"));
    serving("qwen2.5-coder-0.5b");
    expect(address.value).toBe(own);
  });
});
