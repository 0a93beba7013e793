import type { Key, Monitor, Policy } from "../../api/types";
import { plain } from "../../maths/scales";

export const SCOPES = ["generate", "read", "write", "admin"] as const;
export type Scope = (typeof SCOPES)[number];

/** What a key with a scope may do, in the words of a form. */
export const SCOPE_WORDS: Readonly<Record<Scope, string>> = {
  generate: "generate: answers, comparisons, readings",
  read: "read: see vectors, profiles, jobs",
  write: "write: make and change them",
  admin: "admin: everything, also keys and policy",
};

/** What a request may steer with, after "may steer". */
export const OWN_STEERING = { any: "with anything", profiles: "with profiles only", none: "not at all" } as const;
export type OwnSteering = keyof typeof OWN_STEERING;

/** Says what the limits of the policy are. */
export function limitWords(limits: Policy["limits"]): string {
  const { own_steering: own = "any", vectors, max_relative_dose: dose } = limits;
  if (own === "none") return "requests may not steer";
  const what = vectors ? `with ${vectors.join(", ") || "no vector"} only` : own === "profiles" ? "" : "with any vector";
  const how = own === "profiles" ? "through profiles only" : "";
  const bound = dose ? `dose at most ${dose}` : "any dose that the server allows";
  return `requests may steer ${[how, what].filter(Boolean).join(", ")}; ${bound}`;
}

const WITHOUT: readonly (readonly [Scope, string])[] = [
  ["generate", "generate"],
  ["read", "see the library"],
  ["write", "make or change vectors, profiles and jobs"],
  ["admin", "manage keys and policy"],
];

/** Says what a key may not do; null where it may do everything. */
export function mayNot(key: Pick<Key, "scopes" | "limits">): string | null {
  const missing = key.scopes.includes("admin") ? [] : WITHOUT.filter(([scope]) => !key.scopes.includes(scope));
  const parts = missing.length === 0 ? [] : [`may not ${missing.map(([, words]) => words).join(", ")}`];
  const { limits } = key;
  if (limits.own_steering === "profiles") parts.push("steers with profiles only");
  if (limits.own_steering === "none") parts.push("may not steer");
  if (limits.vectors) parts.push(`steers with ${limits.vectors.join(", ") || "no vector"} only`);
  if (limits.max_relative_dose) parts.push(`dose at most ${limits.max_relative_dose}`);
  if (limits.requests_per_minute) parts.push(`${limits.requests_per_minute} requests a minute`);
  if (limits.tokens_per_minute) parts.push(`${limits.tokens_per_minute} tokens a minute`);
  return parts.length === 0 ? null : parts.join("; ");
}

const DAY = 86_400_000;

/** Returns the time some days from now as the API takes it; null for a key that never expires. */
export function expiry(days: number, now = Date.now()): string | null {
  return days === 0 ? null : new Date(now + days * DAY).toISOString();
}

/** Says when a monitor is raised. */
export function raisedWhen(monitor: Pick<Monitor, "vector" | "above" | "below" | "at">): string {
  const bound =
    monitor.above === null || monitor.above === undefined
      ? `below ${plain(monitor.below)}`
      : `above ${plain(monitor.above)}`;
  return `${monitor.vector} ${bound} in the ${monitor.at === "prompt" ? "prompt" : "answer"}`;
}

export interface Bar {
  label: string;
  count: number;
  /** Share of the largest bar. */
  share: number;
}

/** Returns the bars of a distribution from the first to the last that has a score. */
export function barsOf(edges: readonly number[], counts: readonly number[]): Bar[] {
  const first = counts.findIndex((count) => count > 0);
  if (first < 0) return [];
  const last = counts.findLastIndex((count) => count > 0);
  const most = Math.max(...counts);
  return counts.slice(first, last + 1).map((count, offset) => ({
    label: between(edges, first + offset),
    count,
    share: count / most,
  }));
}

function between(edges: readonly number[], bucket: number): string {
  if (bucket === 0) return `up to ${plain(edges[0])}`;
  if (bucket >= edges.length) return `above ${plain(edges[edges.length - 1])}`;
  return `${plain(edges[bucket - 1])} to ${plain(edges[bucket])}`;
}
