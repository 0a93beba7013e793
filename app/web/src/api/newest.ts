import { apiKey } from "./key";

/**
 * Questions of which the newest alone counts: the answer to an earlier one may lack what was changed since, or have what was deleted.
 * An earlier one waits for the newest, and ends as it does. What was answered to a former key counts no more.
 */
export class Newest {
  private last: Promise<void> = Promise.resolve();

  /** Asks, and hands the answer on if it counts. Rejects with the failure of the newest question. */
  ask<T>(question: () => Promise<T>, use: (answer: T) => void): Promise<void> {
    const key = apiKey.peek();
    const counts = () => turn === this.last && key === apiKey.peek();
    const turn: Promise<void> = question().then(
      (answer) => {
        if (counts()) use(answer);
        else if (turn !== this.last) return this.last;
      },
      (failure) => {
        if (counts()) throw failure;
        if (turn !== this.last) return this.last;
      },
    );
    this.last = turn;
    return turn;
  }

  /** Drops the questions that are open. */
  drop(): void {
    this.last = Promise.resolve();
  }
}
