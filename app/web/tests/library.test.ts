import { describe, expect, it } from "vitest";
import { barsOf, expiry, limitWords, mayNot, raisedWhen } from "../src/library/admin/store";
import { steeringVerdict } from "../src/library/VectorCard";
import { cosine, spread } from "../src/maths/geometry";

describe("what a key may not do", () => {
  it("follows from its scopes and limits; an admin may do everything", () => {
    expect(mayNot({ scopes: ["admin"], limits: {} })).toBeNull();
    expect(mayNot({ scopes: ["generate", "read"], limits: {} })).toBe(
      "may not make or change vectors, profiles and jobs, manage keys and policy",
    );
    const limits = { own_steering: "profiles", vectors: ["sentiment"], max_relative_dose: 0.1 } as const;
    const found = mayNot({ scopes: ["admin"], limits: { ...limits, vectors: ["sentiment"], requests_per_minute: 5 } });
    for (const part of ["profiles only", "sentiment only", "max relative dose: 0.1", "requests per minute: 5"])
      expect(found).toContain(part);
  });

  it("names every limit that a key has", () => {
    const limits = { tokens_per_minute: 6, concurrency: 2, rows: 3, jobs: 1, storage_bytes: 0 };
    expect(mayNot({ scopes: ["admin"], limits })).toBe(
      "tokens per minute: 6; concurrency: 2; rows: 3; jobs: 1; storage bytes: 0",
    );
    expect(mayNot({ scopes: ["admin"], limits: { rows: null, vectors: null, storage_bytes: null } })).toBeNull();
  });

  it("ends after some days, or never", () => {
    expect(expiry(0)).toBeNull();
    expect(expiry(30, Date.UTC(2030, 0, 1))).toBe("2030-01-31T00:00:00.000Z");
  });
});

describe("limits of the policy", () => {
  it("are stated in words", () => {
    expect(limitWords({})).toBe("requests may steer with any vector; any dose that the server allows");
    expect(limitWords({ own_steering: "none", max_relative_dose: 0.1 })).toBe("requests may not steer");
    expect(limitWords({ own_steering: "profiles", vectors: ["joy"], max_relative_dose: 0.1 })).toBe(
      "requests may steer through profiles only, with joy only; dose at most 0.1",
    );
  });
});

describe("monitors", () => {
  it("say when they are raised, also at a bound of zero", () => {
    const monitor = { vector: "toxicity@1", above: 0, at: "prompt" } as const;
    expect(raisedWhen(monitor)).toBe("toxicity@1 above 0.00 in the prompt");
    expect(raisedWhen({ vector: "joy@2", above: null, below: -1, at: "generated" })).toBe(
      "joy@2 below −1.00 in the answer",
    );
  });

  it("draw the occupied part of a distribution", () => {
    expect(barsOf([-1, 0, 1], [0, 0, 0, 0])).toEqual([]);
    expect(barsOf([-1, 0, 1], [1, 0, 4, 0])).toEqual([
      { label: "up to −1.00", count: 1, share: 0.25 },
      { label: "−1.00 to 0.00", count: 0, share: 0 },
      { label: "0.00 to 1.00", count: 4, share: 1 },
    ]);
    expect(barsOf([0], [0, 3])[0]?.label).toBe("above 0.00");
  });
});

describe("two versions", () => {
  it("are compared by cosine", () => {
    expect(cosine([1, 2, 2], [2, 4, 4])).toBeCloseTo(1, 12);
    expect(cosine([3, 0], [0, 2])).toBe(0);
    expect(cosine([1, 0], [-2, 0])).toBe(-1);
    expect(cosine([0, 0], [1, 1])).toBeNull();
  });

  it("are read at layers that are spread over all", () => {
    expect(spread([1, 2, 3], 5)).toEqual([1, 2, 3]);
    expect(spread([0, 1, 2, 3, 4, 5, 6, 7, 8], 3)).toEqual([0, 4, 8]);
    expect(spread([4, 5], 1)).toEqual([4]);
  });
});

describe("the verdict on steering", () => {
  const vector = (strength: number[] | null, negative: number[] | null, basis = "measured", warnings: string[] = []) =>
    ({
      recommended: { layers: [1], strength, negative, basis },
      quality: { warnings, dose_response: {} },
    }) as unknown as Parameters<typeof steeringVerdict>[0];

  it("names the only way in which a vector steers", () => {
    expect(steeringVerdict(vector([1, 3], [-2, -1])).text).toBe("steers");
    expect(steeringVerdict(vector(null, [-2, -1]))).toEqual({ text: "steers one way, away from it", kind: "good" });
    expect(steeringVerdict(vector([1, 3], null)).text).toBe("steers one way, towards it");
    expect(steeringVerdict(vector([1, 3], null, "defaults")).text).toBe("steers");
    expect(steeringVerdict(vector(null, null)).text).toBe("does not steer");
  });

  it("says not shown where a strength passes on average, and only of the sides that a warning names", () => {
    const [no, unsure] = [
      "does not steer at positive strengths: no strength",
      "not shown to steer at negative strengths",
    ];
    expect(steeringVerdict(vector(null, null, "measured", [no, unsure])).text).toBe("not shown to steer");
    expect(steeringVerdict(vector(null, null, "measured", [no])).text).toBe("does not steer");
    expect(steeringVerdict(vector(null, [-2, -1], "measured", [no])).text).toBe("steers one way, away from it");
  });
});
