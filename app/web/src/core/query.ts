import { batch, signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { apiKey, isRefusal } from "../api/client";

type Read<T, A extends unknown[]> = (stop: AbortSignal, ...given: A) => Promise<T>;

/** A question to the server with its latest answer. The newest question counts: those before are given up, wait for it and end as it does.
 * What was answered to a former key counts no more.
 * `data` is null until a question is answered. A failure leaves it as it is, because forms are built on it, unless `voids` says that it
 * no longer holds: by default what one key was shown goes as soon as another key is refused. `error` stays until a question is answered. */
export class Query<T, A extends unknown[] = []> {
  readonly data = signal<T | null>(null);
  readonly error = signal<unknown>(null);
  readonly busy = signal(false);
  private newest: Promise<T | null> | null = null;
  private stopper = new AbortController();

  constructor(
    private readonly read: Read<T, A>,
    private readonly voids: (error: unknown) => boolean = isRefusal,
  ) {}

  /** Asks, and resolves with what the newest question was answered: null where it failed or was stopped. It never rejects. */
  load(...given: A): Promise<T | null> {
    this.stopper.abort();
    this.stopper = new AbortController();
    const key = apiKey.peek();
    const { signal } = this.stopper;
    this.busy.value = true;
    const stopped = new Promise<never>((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    const answered = (async () => this.read(signal, ...given))();
    const turn: Promise<T | null> = Promise.race([answered, stopped]).then(
      (data) => this.end(turn, key, data),
      (error) => this.end(turn, key, null, { error }),
    );
    this.newest = turn;
    return turn;
  }

  /** Asks for a person who waits for the answer: the failure before is not shown any more. */
  ask(...given: A): Promise<T | null> {
    this.error.value = null;
    return this.load(...given);
  }

  private async end(turn: unknown, key: string | null, data: T | null, failure?: { error: unknown }) {
    if (turn !== this.newest) return this.newest;
    const counts = key === apiKey.peek();
    batch(() => {
      this.busy.value = false;
      if (counts && (!failure || this.voids(failure.error))) this.data.value = data;
      if (counts) this.error.value = failure?.error ?? null;
    });
    return counts ? data : null;
  }

  /** Gives up the question that is open. */
  stop(): void {
    this.stopper.abort();
    this.newest = null;
    this.busy.value = false;
  }

  /** Takes what the server has just answered to a change; a question that is open is dropped. */
  put(data: T): void {
    this.stop();
    batch(() => {
      this.data.value = data;
      this.error.value = null;
    });
  }

  forget(): void {
    this.stop();
    this.data.value = this.error.value = null;
  }
}

/** Queries by what is asked. Each answer is kept, until another key is used. */
export class Queries<T, A extends unknown[]> {
  private readonly known = new Map<string, Query<T>>();

  constructor(private readonly read: Read<T, A>) {}

  of(...given: A): Query<T> {
    const name = JSON.stringify([apiKey.peek(), given]);
    const query = this.known.get(name) ?? new Query<T>((stop) => this.read(stop, ...given), () => false); // biome-ignore format: one line
    this.known.set(name, query);
    return query;
  }
}

/** Asks a query that a component shows, unless it was answered. */
export function useQuery<T>(query: Query<T>): Query<T> {
  useEffect(() => {
    if (query.data.peek() === null) void query.load();
  }, [query]);
  return query;
}

interface Page<T> {
  data: readonly T[];
  warnings?: readonly string[];
  next_cursor?: string | null;
}

/** Returns the entries of every page of a list, and what the pages warn of. */
export async function allPages<T>(read: (cursor: string | undefined) => Promise<Page<T>>) {
  const all = { data: [] as T[], warnings: [] as string[] };
  let cursor: string | undefined;
  do {
    const page = await read(cursor);
    all.data.push(...page.data);
    all.warnings.push(...(page.warnings ?? []));
    cursor = page.next_cursor ?? undefined;
  } while (cursor !== undefined);
  return all;
}

/** Repeats some work in the visible page, each time some seconds after it has ended. Returns what stops it. */
export function repeat(seconds: number, work: () => Promise<unknown>): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let stopped = false;
  const wait = () => {
    if (stopped) return;
    timer = setTimeout(() => void (document.hidden ? Promise.resolve() : work()).finally(wait), seconds * 1000);
  };
  wait();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}

/** How long the buttons rest after a click, however quick the server is: the second click of a double click must not
 * repeat the work, nor hit the button that has moved under the pointer. */
export const REST_MS = 500;

/** What a person asks for in a panel: one thing at a time, with its failure at the place where it was asked for. */
export class Mutations<Place extends string> {
  /** Whether buttons must wait. */
  readonly busy = signal(false);
  private readonly failure = signal<{ place: Place; error: unknown; key: string | null } | null>(null);

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
      void rest.then(() => (this.busy.value = false)); // biome-ignore format: one line
    }
  }
}
