import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Deploy } from "../src/compare/CodeDialog";
import { change, restoredDraft } from "../src/compare/draft";
import { saveProfile } from "../src/library/store";
import { held, refusal, settle } from "./fakeServer";
import { onScreen, root, server, show } from "./onScreen";

const CHAT = "POST /v1/chat/completions";

onScreen();

beforeEach(() => change(restoredDraft({ controls: [{ vector: "joy", strength: 1 }] })));
afterEach(() => change(restoredDraft({})));

const open = (saved: string | null) => show(Deploy, { saved, model: "small", onSaved: () => {} });
const press = async (button: string) => {
  root.find("button", button).press();
  await settle();
};

describe("a profile of the dials", () => {
  it("shows what it answered, which goes with it, as does a question that is open", async () => {
    server.on(CHAT, () => ({ choices: [{ message: { content: "Hello." } }] }));
    open("happy");
    await press("Try it");
    expect(root.textContent).toContain("It says: “Hello.”");
    open("happier");
    await settle();
    expect(root.textContent).not.toContain("Hello.");
    let stopped = false;
    server.on(CHAT, (_, { signal }) => {
      signal.addEventListener("abort", () => {
        stopped = true;
      });
      return held().promise;
    });
    await press("Try it");
    open(null);
    await settle();
    expect(stopped).toBe(true);
  });

  it("has no error of another form", async () => {
    server.on("PUT /v1/profiles/happy", () => refusal(422, "invalid_request"));
    await saveProfile("happy", []);
    open(null);
    expect(root.textContent).not.toContain("refused");
    await settle();
  });
});
