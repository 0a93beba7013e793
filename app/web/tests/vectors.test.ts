import "./fakeAddress";
import { isValidElement, toChildArray } from "preact";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { setKey } from "../src/api/client";
import { begin, tasks } from "../src/core/jobs";
import { open } from "../src/core/places";
import { card, library, vectors } from "../src/core/server";
import { Quotes, Result } from "../src/make/Result";
import { measure, task } from "../src/make/work";
import { FakeServer, held, refusal } from "./fakeServer";

const VECTORS = "GET /v1/vectors";
const listOf = (...names: string[]) => ({ data: names.map((name) => ({ name })), next_cursor: null });
const names = () => vectors.value?.map((vector) => vector.name);
let server: FakeServer;

beforeEach(() => {
  server = new FakeServer().on(VECTORS, () => listOf("joy"));
  library.forget();
  card.value = null;
  tasks.value = [];
});

afterEach(() => {
  setKey(null);
  vi.unstubAllGlobals();
});

describe("the list of vectors", () => {
  it.each([listOf("joy", "deleted"), refusal(422, "invalid_request")])(
    "is that of the newest request, and an earlier one waits for it (%#)",
    async (answer) => {
      const [early, late] = [held(), held()];
      server.on(VECTORS, () => early.promise);
      const earlier = library.load();
      await vi.waitFor(() => expect(server.seen).toHaveLength(1));
      server.on(VECTORS, () => late.promise);
      const newer = library.load();
      early.give(answer);
      const waited = vi.fn();
      void earlier.then(waited);
      await vi.waitFor(() => expect(server.seen).toHaveLength(2));
      await new Promise((done) => setTimeout(done, 5));
      expect([names(), waited.mock.calls.length]).toEqual([undefined, 0]);
      late.give(listOf("joy"));
      await Promise.all([earlier, newer]);
      expect(names()).toEqual(["joy"]);
    },
  );

  it("of a former key is dropped", async () => {
    const late = held();
    server.on(VECTORS, () => late.promise);
    const load = library.load();
    setKey("another");
    late.give(listOf("secret"));
    await load;
    expect(vectors.value).toBeNull();
  });
});

describe("a list that cannot be read after a job", () => {
  const job = { id: "job-1", status: "succeeded", progress: {} };

  beforeEach(() => {
    open("make");
    server.on("POST /v1/evaluations", () => job).on(VECTORS, () => refusal(422, "invalid_request"));
  });

  it("says that the vector was stored, and is read again on request", async () => {
    await begin({ place: "make", kind: "extract", vector: "joy" }, () => Promise.resolve(job as never)).end;
    expect(card.value).toBe("joy");
    expect(String(task.value?.error.value)).toContain(
      "joy was stored, but the library could not be read again. refused",
    );
    server.on(VECTORS, () => listOf("joy"));
    await library.ask();
    expect([library.error.value, names()]).toEqual([null, ["joy"]]);
  });

  it("is an error of the measurement too", async () => {
    measure("joy");
    await task.value?.end;
    expect(task.value?.error.value).toBeInstanceOf(Error);
  });
});

describe("what stands below the card of a vector", () => {
  it("is new for another vector, and keeps the prompt for another version", () => {
    const keys = ["joy@1", "joy@2", "refusal@1"].map((id) => {
      const name = id.split("@")[0] ?? "";
      library.put({ data: [{ id, name }], warnings: [] } as never);
      const trial = toChildArray(Result({ name })?.props.children).find(
        (one) => isValidElement(one) && one.type === Quotes,
      );
      return isValidElement(trial) ? trial.key : null;
    });
    expect(keys).toEqual(["joy", "joy", "refusal"]);
  });
});
