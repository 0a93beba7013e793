import { afterEach, expect, it, vi } from "vitest";

afterEach(() => {
  vi.unstubAllGlobals();
  vi.resetModules();
});

it("that the browser blocks leaves a page that works, with the key and the theme of this page alone", async () => {
  const blocked = () => {
    throw new DOMException("Access is denied for this document.", "SecurityError");
  };
  for (const area of ["localStorage", "sessionStorage"]) {
    vi.stubGlobal(area, undefined);
    Object.defineProperty(globalThis, area, { get: blocked, configurable: true });
  }
  vi.stubGlobal("document", { documentElement: { dataset: {} } });
  vi.stubGlobal("matchMedia", () => ({ addEventListener: () => {} }));
  const { apiKey, setKey } = await import("../src/api/client");
  const { applyTheme, nextTheme, theme } = await import("../src/frame/theme");
  applyTheme();
  nextTheme();
  setKey("secret");
  expect([apiKey.value, theme.value]).toEqual(["secret", "light"]);
});

/** Storage of a tab, which outlives a reload. */
function kept(): Map<string, string> {
  const session = new Map<string, string>();
  vi.stubGlobal("sessionStorage", {
    getItem: (name: string) => session.get(name) ?? null,
    setItem: (name: string, text: string) => session.set(name, text),
    removeItem: (name: string) => session.delete(name),
  });
  return session;
}

it("keeps the key for this tab, until it is removed", async () => {
  const session = kept();
  const before = await import("../src/api/client");
  before.setKey("secret");
  vi.resetModules();
  const after = await import("../src/api/client");
  expect(after.apiKey.value).toBe("secret");
  after.setKey(null);
  expect(session.size).toBe(0);
});

it("keeps the earlier turns of a conversation over a reload", async () => {
  kept();
  const parts = {
    history: [{ role: "user" as const, content: "Hello" }],
    turns: [{ prompt: "So?", answers: { normal: "So." } }],
  };
  (await import("../src/compare/draft")).change(parts);
  vi.resetModules();
  expect((await import("../src/compare/draft")).draft.value).toMatchObject(parts);
});
