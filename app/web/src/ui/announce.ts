import { signal } from "@preact/signals";

/** What screen readers read out. One element of the frame holds it: what is there before it changes is read out reliably. */
export const announcement = signal("");

/** Has screen readers read something out, also when they have just read out the same. */
export function announce(text: string): void {
  announcement.value = announcement.peek() === text ? `${text}\u00a0` : text;
}

export interface Step {
  message: string;
  done: number;
  total: number;
}

const LEAST_MS = 5000;
const QUARTERS = 4;

/** Chooses what is read out of a long piece of work: its begin, and of all steps after it a new phase or quarter, each a while after another. */
export class Milestones {
  private last: { message: string; quarter: number; at: number } | null = null;

  /** Returns what to read out of a step; null where it is too soon, or where nothing has changed much. */
  next({ message, done, total }: Step, at: number): string | null {
    const quarter = total > 0 ? Math.floor((QUARTERS * done) / total) : 0;
    if (this.last !== null) {
      const same = this.last.message === message && this.last.quarter === quarter;
      if (same || at - this.last.at < LEAST_MS) return null;
    }
    this.last = { message, quarter, at };
    return total > 0 ? `${message || "Working"}, ${done} of ${total}` : message || "Working";
  }
}
