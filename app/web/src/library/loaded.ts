import { signal } from "@preact/signals";
import { isRefusal } from "../api/errors";
import { Newest } from "../api/newest";

/**
 * What is read from the server, again and again; the newest read counts.
 *
 * `data` is null until a read succeeds. A failure leaves it as it is, because forms are built on it, unless `voids` says that it
 * no longer holds: by default what one key was shown goes as soon as another key is refused. `error` stays until a read succeeds.
 */
export class Loaded<T> {
  readonly data = signal<T | null>(null);
  readonly error = signal<unknown>(null);
  private readonly newest = new Newest();

  constructor(
    private readonly read: () => Promise<T>,
    private readonly voids: (error: unknown) => boolean = isRefusal,
  ) {}

  /** Reads it again. It never throws: a failure is in `error`. */
  async load(): Promise<void> {
    try {
      await this.newest.ask(this.read, (found) => this.put(found));
    } catch (error) {
      if (this.voids(error)) this.data.value = null;
      this.error.value = error;
    }
  }

  /** Takes what the server has just answered to a change; reads that are under way are dropped. */
  put(data: T): void {
    this.newest.drop();
    this.data.value = data;
    this.error.value = null;
  }

  /** Forgets everything, also reads that are under way. */
  forget(): void {
    this.newest.drop();
    this.data.value = this.error.value = null;
  }
}

/** Repeats some work in the visible page, each time some seconds after it has ended. Returns what stops it. */
export function repeat(seconds: number, work: () => Promise<void>): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let stopped = false;
  const wait = () => {
    if (!stopped)
      timer = setTimeout(() => void (document.hidden ? Promise.resolve() : work()).finally(wait), seconds * 1000);
  };
  wait();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}
