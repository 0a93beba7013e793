import { isValidElement, toChildArray } from "preact";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ApiError } from "../src/api/errors";
import { setKey } from "../src/api/key";
import { loadVectors, vectors } from "../src/frame/vectors";
import { Result } from "../src/make/Result";
import { TryIt } from "../src/make/TryIt";
import { error, loadChoices, made, madeVector, makeByJob, measure, running, show } from "../src/make/work";
import { events, FakeServer, held, refusal } from "./fakeServer";

const VECTORS = "GET /v1/vectors";
const listOf = (...names: string[]) => ({ data: names.map((name) => ({ name })), next_cursor: null });
const names = () => vectors.value?.map((vector) => vector.name);
let server: FakeServer;

beforeEach(() => {
  server = new FakeServer().on(VECTORS, () => listOf("joy"));
  vectors.value = null;
  made.value = null;
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
      const earlier = loadVectors();
      await vi.waitFor(() => expect(server.seen).toHaveLength(1));
      server.on(VECTORS, () => late.promise);
      const newer = loadVectors();
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
    const load = loadVectors();
    setKey("another");
    late.give(listOf("secret"));
    await load;
    expect(vectors.value).toBeNull();
  });
});

describe("a list that cannot be read after a job", () => {
  const job = { id: "job-1", status: "succeeded", progress: {} };
  const start = () => Promise.resolve(job as never);

  beforeEach(() => {
    server
      .on("GET /v1/jobs/job-1/events", () => events(["done", job]))
      .on("POST /v1/evaluations", () => job)
      .on(VECTORS, () => refusal(422, "invalid_request"));
  });

  it("says that the vector was stored, and is read again on request", async () => {
    await makeByJob("extract", "joy", start);
    expect([running.value, made.value, madeVector.value]).toEqual([null, "joy", undefined]);
    expect(String(error.value)).toContain("joy was stored, but the library could not be read again. refused");
    server.on(VECTORS, () => listOf("joy"));
    await show("joy");
    expect([error.value, madeVector.value?.name]).toEqual([null, "joy"]);
  });

  it("is an error of the measurement too", async () => {
    await measure("joy");
    expect(error.value).toBeInstanceOf(Error);
  });
});

describe("a list to choose from", () => {
  beforeEach(() => {
    error.value = null;
  });

  it("clears the refusal of a former key once it is loaded, and no other error", async () => {
    await loadChoices(() => Promise.reject(new ApiError(401, "invalid_api_key", "no")));
    expect(error.value).toMatchObject({ status: 401 });
    setKey("another");
    await loadChoices(async () => {});
    expect(error.value).toBeNull();
    error.value = new ApiError(422, "invalid_request", "no");
    await loadChoices(async () => {});
    expect(error.value).toMatchObject({ status: 422 });
  });

  it("shows no late refusal of a former key", async () => {
    await loadChoices(async () => {
      setKey("another");
      throw new ApiError(401, "invalid_api_key", "no");
    });
    expect(error.value).toBeNull();
  });
});

describe("what stands below the card of a vector", () => {
  it("is new for another vector and for another version", () => {
    const keys = ["joy@1", "joy@2", "refusal@1"].map((id) => {
      const name = id.split("@")[0] ?? "";
      vectors.value = [{ id, name }] as never;
      made.value = name;
      const trial = toChildArray(Result({ name })?.props.children).find(
        (one) => isValidElement(one) && one.type === TryIt,
      );
      return isValidElement(trial) ? trial.key : null;
    });
    expect(new Set(keys).size).toBe(3);
  });
});
