import "./fakeAddress";
import { afterEach, describe, expect, it } from "vitest";
import { gallery, shownSaved } from "../src/compare/gallery";
import own from "../src/compare/gallery/qwen2.5-coder-0.5b.json?url";
import embedded from "../src/compare/gallery/smollm2-135m-instruct.json?url";
import { Landing } from "../src/compare/Landing";
import { capabilities, serverTrouble } from "../src/core/server";
import { settle } from "./fakeServer";
import { onScreen, root, server, show } from "./onScreen";

onScreen();

const stop = (strength: number) => ({ strength, shift: [strength, 0.1], perplexity_ratio: 1, words: [["So.", 1]] });
const saved = (model: string, prompt: string, strengths: number[]) => {
  const item = { vector: "joy", poles: { positive: "glad", negative: "sad" }, prompt, seed: 1, stops: strengths.map(stop) }; // biome-ignore format: one line
  return { model, date: "", samples: 16, items: [item] };
};
const serving = (name: string) => (capabilities.value = { model: { name }, concepts: [], limits: {} } as never);

describe("the saved answers", () => {
  afterEach(() => {
    capabilities.value = serverTrouble.value = shownSaved.value = null;
    gallery.forget();
  });

  const opened = async () => {
    server
      .on(`GET ${own}`, () => saved("qwen2.5-coder-0.5b", "Of its own?", [0, 1]))
      .on(`GET ${embedded}`, () => saved("smollm2-135m-instruct", "Of the embedded one?", [-3, -2, -1, 0, 1, 2, 3]));
    show(Landing, {});
    await settle();
  };

  it("wait until the server has said which model it serves", async () => {
    await opened();
    expect(server.seen).toEqual([]);
    serving("qwen2.5-coder-0.5b");
    await settle();
    expect(server.seen).toEqual([`GET ${own}`]);
    expect(root.textContent).toContain("Of its own?");
  });

  it.each([
    ["qwen2.5-coder-0.5b", own, "qwen2.5-coder-0.5b, which this server runs"],
    ["smollm2-135m-instruct", embedded, "smollm2-135m-instruct, which this server runs"],
    ["another", embedded, "smollm2-135m-instruct, a small model that comes with the server"],
  ])("are for %s those of %s, and say of which model they are", async (model, file, words) => {
    serving(model);
    await opened();
    expect(server.seen).toEqual([`GET ${file}`]);
    expect(root.textContent).toContain(`The saved answers are of ${words}.`);
  });

  it("are those of the embedded model while the server is not ready, and then those of its own", async () => {
    serverTrouble.value = "The model is loading.";
    await opened();
    shownSaved.value = { item: 0, stop: 6 };
    expect(root.textContent).toContain("Of the embedded one?");
    serving("qwen2.5-coder-0.5b");
    await settle();
    expect(root.textContent).toContain("Of its own?");
  });
});
