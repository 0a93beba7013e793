import { signal } from "@preact/signals";
import { apiKey } from "../api/retry";

/**
 * How long the buttons rest after a click, however quick the server is: the second click of a double click must not
 * repeat the work, nor hit the button that has moved under the pointer.
 */
export const REST_MS = 500;

interface Failure {
  place: string;
  error: unknown;
  key: string | null;
}

/** What a person asks for in a panel: one thing at a time, with its failure at the place where it was asked for. */
export class Mutations<Place extends string> {
  /** Whether buttons must wait. */
  readonly busy = signal(false);
  private readonly failure = signal<Failure | null>(null);

  /** Why the latest action failed; null if it was asked for at another place or with another key. */
  errorAt(place: Place): unknown {
    const failure = this.failure.value;
    return failure?.place === place && failure.key === apiKey.value ? failure.error : null;
  }

  /** Takes the failure away, once a person has decided against the action. */
  dismiss(): void {
    this.failure.value = null;
  }

  /** Runs something unless something else runs. Returns whether it was done. */
  async run(place: Place, work: () => Promise<unknown>): Promise<boolean> {
    if (this.busy.value) return false;
    this.busy.value = true;
    this.failure.value = null;
    const rest = new Promise((resolve) => setTimeout(resolve, REST_MS));
    try {
      await work();
      return true;
    } catch (error) {
      this.failure.value = { place, error, key: apiKey.value };
      return false;
    } finally {
      void rest.then(() => {
        this.busy.value = false;
      });
    }
  }
}
