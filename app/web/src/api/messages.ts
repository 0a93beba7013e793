import type { Message } from "./types";

/** Whether something from an address or a saved link is a message. */
export function isMessage(one: unknown): one is Message {
  const { role, content } = (one ?? {}) as Partial<Message>;
  return typeof role === "string" && typeof content === "string";
}
