// An address bar with a history for modules that need one. It is imported first, since they look for it when they are loaded.

const entries = [""];
let now = 0;
const listeners: (() => void)[] = [];

function changed(): void {
  for (const listener of listeners) listener();
}

const location = {
  origin: "http://127.0.0.1",
  get hash() {
    return entries[now] ?? "";
  },
  set hash(next: string) {
    if (next === entries[now]) return;
    entries.splice(++now, entries.length, next);
    changed();
  },
};

const history = {
  replaceState(_state: unknown, _title: string, url: string) {
    entries[now] = url;
  },
};

/** Goes one entry of the history back. */
export function back(): void {
  now--;
  changed();
}

const addEventListener = (_name: string, listener: () => void) => listeners.push(listener);
Object.assign(globalThis, { location, history, addEventListener });
