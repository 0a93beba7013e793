import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { duration } from "../maths/text";
import { Button } from "./Button";

interface Props extends Step {
  /** Seconds that it still takes, if that is known. */
  left?: number | null;
  onStop?: () => void;
}

/** Shows how far a long piece of work has come, with a way to stop it. Screen readers read out milestones only. */
export function Progress({ message, done, total, left = null, onStop }: Props) {
  const [milestones] = useState(() => new Milestones());
  useEffect(() => {
    const spoken = milestones.next({ message, done, total }, performance.now());
    if (spoken !== null) announce(spoken);
  }, [message, done, total]);
  return (
    <div class="progress">
      <div class="row between">
        <span>{message || "Working"}</span>
        <span class="row">
          {total > 0 && (
            <span class="number small">
              {done} / {total}
              {left !== null && `, ${duration(left)} left`}
            </span>
          )}
          {onStop && <Button label="Stop" onClick={onStop} />}
        </span>
      </div>
      <progress aria-label={message || "Progress"} {...(total > 0 ? { value: done, max: total } : {})} />
    </div>
  );
}

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
