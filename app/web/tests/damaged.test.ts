import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { library } from "../src/core/server";
import { Keys } from "../src/library/admin/Keys";
import { keys } from "../src/library/admin/store";
import Library, { DefaultSteering, Profiles } from "../src/library/Library";
import { Similarity } from "../src/library/Similarity";
import { defaultSteering, profiles, similarities, versions } from "../src/library/store";
import { VectorDetails } from "../src/library/VectorDetails";
import { refusal, settle } from "./fakeServer";
import { onScreen, root, server, show } from "./onScreen";

const warning = (id: string) => `left out, because their stored bytes are damaged: ${id}; restore or delete them`;
const named = (...names: string[]) => names.map((name) => ({ name, id: `${name}@1` })) as never;
const corrupt = () => refusal(500, "store_corrupt", { "x-should-retry": "false" });
const similarTo = (other: string) => ({ data: [{ id: `${other}@1`, mean: 0.5 }], warnings: [warning("calm@1")] });

onScreen();

afterEach(() => {
  library.data.value = null;
});

describe("damaged vectors that the list leaves out", () => {
  it("are named above it, those of every page, until they are deleted", async () => {
    const pages = [
      { data: [], warnings: [warning("calm@1")], next_cursor: "more" },
      { data: [], warnings: [warning("joy@1")], next_cursor: null },
    ];
    server.on("GET /v1/vectors", () => pages.shift() ?? { data: [], next_cursor: null });
    await library.load();
    // without a limit, which an operator may have set lower than any that is asked for
    expect(server.seen).toEqual(["GET /v1/vectors", "GET /v1/vectors?cursor=more"]);
    show(Library, {});
    expect(root.find("section", "Vectors").textContent).toContain(warning("calm@1") + warning("joy@1"));
    await library.load();
    await settle();
    expect(root.textContent).not.toContain("damaged");
  });
});

describe("a table of similarities", () => {
  beforeEach(() => {
    server
      .on("GET /v1/vectors/joy/similar", () => similarTo("fear"))
      .on("GET /v1/vectors/calm/similar", corrupt)
      .on("GET /v1/vectors/fear/similar", () => similarTo("joy"));
  });

  it("has the others, and says which are damaged", async () => {
    library.data.value = { data: named("joy", "calm", "fear"), warnings: [] } as never;
    show(Similarity, {});
    root.find("button").press();
    await settle();
    expect(root.find("table").textContent).not.toContain("calm");
    for (const words of [warning("calm@1"), "refused: store_corrupt", "The table has 2 of 3 vectors."])
      expect(root.textContent).toContain(words);
    const { names, cosine } = await similarities(named("joy", "calm", "fear"));
    expect([names, cosine]).toEqual([
      ["joy", "fear"],
      [
        [1, 0.5],
        [0.5, 1],
      ],
    ]);
  });

  it("is not drawn of damaged vectors alone, nor after another failure", async () => {
    await expect(similarities(named("calm"))).rejects.toMatchObject({ code: "store_corrupt" });
    server.on("GET /v1/vectors/fear/similar", () => refusal(404, "vector_not_found"));
    await expect(similarities(named("joy", "fear"))).rejects.toMatchObject({ code: "vector_not_found" });
  });
});

describe("a damaged profile", () => {
  it("is named above the profiles", async () => {
    const words = "left out, because their stored bytes are damaged: gloom; restore or delete them";
    server.on("GET /v1/profiles", () => ({ data: [{ name: "cheer", interventions: [] }], warnings: [words] }));
    await profiles.load();
    show(Profiles, {});
    const shown = root.find("section", "Profiles").textContent;
    expect(shown).toContain(words);
    expect(shown).toContain("cheer");
    profiles.forget();
  });
});

describe("a damaged key", () => {
  it("is named above the list", () => {
    const words = "key k may do nothing: its limits cannot be read; restore or delete it";
    keys.data.value = { data: [{ id: "k", name: "reader", scopes: [], limits: {} } as never], warnings: [words] };
    show(Keys, {});
    expect(root.find("section").textContent).toContain(words);
    keys.forget();
  });
});

describe("a default steering that is not applied", () => {
  it("says so", async () => {
    const words = "the default steering is not applied: the bytes of vector joy@1 do not match their SHA-256";
    server.on("GET /v1/steering", () => ({ interventions: [{ vector: "joy@1" }], warnings: [words] }));
    await defaultSteering.load();
    show(DefaultSteering, {});
    expect(root.find("section").textContent).toContain(words);
    defaultSteering.forget();
  });
});

describe("the versions of a vector", () => {
  const version = (number: number) => ({
    version: number,
    created_at: "2030-01-01",
    method: "pca",
    sha256: "a",
    auroc: null,
  });

  it("are those of every page, and the damaged ones are named", async () => {
    const pages = [
      { data: [version(4)], next_before: 3, warnings: [warning("joy@3")] },
      { data: [version(2)], next_before: null },
    ];
    server.on("GET /v1/vectors/joy/versions", () => pages.shift());
    library.data.value = {
      data: [{ id: "joy@4", name: "joy", version: 4, layers: [], tags: [], provenance: {} }],
      warnings: [],
    } as never;
    show(VectorDetails, { name: "joy" });
    await vi.advanceTimersByTimeAsync(100);
    await settle();
    const shown = root.find("section", "Versions").textContent;
    expect(shown).toContain(warning("joy@3"));
    expect(server.seen.slice(0, 2)).toEqual(["GET /v1/vectors/joy/versions", "GET /v1/vectors/joy/versions?before=3"]);
    pages.push({ data: [version(1)], next_before: null });
    expect(((await versions.of("joy", "joy@1").load())?.data ?? []).map((one) => one.version)).toEqual([1]);
  });
});
