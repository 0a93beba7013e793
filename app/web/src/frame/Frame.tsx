import type { ComponentType } from "preact";
import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import { keyState, keyWanted, retrying } from "../api/client";
import { openJobs } from "../core/jobs";
import { MAIN, type PlaceName, place, placeHref, TITLES } from "../core/places";
import { capabilities, load, serverTrouble } from "../core/server";
import { announcement, Button, Note, toast } from "../ui/parts";
import { HelpDialog, helpShown, KeyDialog, onKey } from "./dialogs";
import { JobTray } from "./JobTray";
import { nextTheme, theme } from "./theme";

/** Each place is a module of its own, fetched when it is first opened. */
const MODULES: Readonly<Record<PlaceName, () => Promise<{ default: ComponentType }>>> = {
  compare: () => import("../compare/Compare"),
  make: () => import("../make/Make"),
  space: () => import("../space/Space"),
  read: () => import("../read/Read"),
  library: () => import("../library/Library"),
  admin: () => import("../library/admin/Admin"),
};

export function Frame() {
  const name = place.value;
  const { Place, failed } = usePlace(name);
  useEffect(() => {
    document.title = `${TITLES[name]} · steering-server`;
  }, [name]);
  // Before the page is painted, so that no key is lost that is pressed as soon as it is seen.
  useLayoutEffect(() => {
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  return (
    <div class="frame">
      <button type="button" class="skip" onClick={() => document.getElementById("main")?.focus()}>
        Skip to the content
      </button>
      <nav class="rail" aria-label="Places">
        {MAIN.map((one) => (
          <a
            key={one}
            href={placeHref(one)}
            {...(one === (name === "read" ? "compare" : name) ? { "aria-current": "page" as const } : {})}
          >
            <Icon name={one} />
            {TITLES[one]}
          </a>
        ))}
      </nav>
      <TopBar />
      <main class="place" id="main" tabIndex={-1} aria-busy={!Place && !failed}>
        {serverTrouble.value && <Note kind="error">{serverTrouble.value} Trying again every few seconds.</Note>}
        {failed && <NotLoaded name={name} />}
        {(name === "compare" || name === "read") && <Modes />}
        {Place && <Place key={name} />}
      </main>
      <div role="status" class="visually-hidden">
        {announcement.value}
      </div>
      {toast.value && (
        <p class="toast" aria-hidden="true">
          {toast.value}
        </p>
      )}
      {helpShown.value && <HelpDialog />}
    </div>
  );
}

function Modes() {
  return (
    <nav class="segments modes" aria-label="Modes">
      {MODES.map(([name, words]) => (
        <a key={name} href={placeHref(name)} {...(name === place.value ? { "aria-current": "page" as const } : {})}>
          {words}
        </a>
      ))}
    </nav>
  );
}

const MODES = [
  ["compare", "Steer"],
  ["read", "Read"],
] as const;

/** What a place shows whose module cannot be fetched. After an upgrade of the server it has another address, which a new page knows. */
function NotLoaded({ name }: { name: PlaceName }) {
  return (
    <Note kind="error">
      {TITLES[name]} could not be loaded. Load the page again: the server may have been upgraded, or cannot be reached.
    </Note>
  );
}

function usePlace(name: PlaceName): { Place: ComponentType | undefined; failed: boolean } {
  const [loaded, setLoaded] = useState<Partial<Record<PlaceName, ComponentType>>>({});
  const [failed, setFailed] = useState<PlaceName | null>(null);
  useEffect(() => {
    setFailed(null);
    MODULES[name]().then(
      (module) => setLoaded((before) => ({ ...before, [name]: module.default })),
      () => setFailed((before) => (place.value === name ? name : before)),
    );
  }, [name]);
  return { Place: loaded[name], failed: failed === name };
}

const KEY_WORDS = { wanted: "Key needed", limited: "Key: limited", set: "Key set", none: "No key" } as const;

/** Shows the place, the model and its device, what runs, the key and the theme. */
export function TopBar() {
  const [keyShown, setKeyShown] = useState(false);
  useEffect(() => {
    if (keyWanted.value) setKeyShown(true);
  }, [keyWanted.value]);
  return (
    <header class="top-bar">
      <h1>{TITLES[place.value]}</h1>
      <JobTray />
      <ServerFacts />
      {(["library", "admin"] as const).map((name) => (
        <a
          key={name}
          class="icon-link"
          href={placeHref(name)}
          title={TITLES[name]}
          {...(name === place.value ? { "aria-current": "page" as const } : {})}
        >
          <Icon name={name} size={16} />
          <span class="visually-hidden">{TITLES[name]}</span>
        </a>
      ))}
      <Button kind="quiet" hidden="API key" onClick={() => setKeyShown(true)}>
        <Icon name="key" size={16} />
        <span class="wide-only">{KEY_WORDS[keyState.value]}</span>
      </Button>
      <Button kind="quiet" hidden={`Theme: ${theme.value}. Change`} title="Change the colours" onClick={nextTheme}>
        <Icon name="theme" size={16} />
      </Button>
      <Button
        kind="quiet wide-only"
        hidden="Keyboard help and documentation"
        title="Keys and documentation"
        onClick={() => (helpShown.value = true)}
      >
        <Icon name="help" size={16} />
      </Button>
      {keyShown && <KeyDialog onClose={() => setKeyShown(false)} />}
    </header>
  );
}

/** What stands for the model's name while it is not known. */
const UNKNOWN = {
  wanted: "Waiting for a key",
  limited: "Not shown to this key",
  set: "Connecting",
  none: "Connecting",
};

function ServerFacts() {
  const model = capabilities.value?.model;
  const now = load.value;
  const busy = retrying.value > 0;
  const state = serverTrouble.value ? "off" : !busy && (model || keyState.value === "limited") ? "" : "waiting";
  const known = model?.name ?? (serverTrouble.value ? "Server not ready" : UNKNOWN[keyState.value]);
  return (
    <p class="facts" role="status" aria-live="off">
      <span class="row">
        <span class={`dot ${state}`} aria-hidden="true" />
        <strong>{busy ? "Busy, trying again" : known}</strong>
      </span>
      {model && <span class="wide-only">{model.device}</span>}
      {now && (
        <span class="wide-only number">
          {workWords(openJobs.value, now.running)}
          {now.waiting > 0 && `, ${now.waiting} waiting`}
        </span>
      )}
      {now?.tokensPerSecond != null && <span class="wide-only number">{Math.round(now.tokensPerSecond)} tok/s</span>}
    </p>
  );
}

/** How much is being worked on: jobs, and requests that are in the batch. */
export function workWords(jobs: number, requests: number): string {
  const count = (n: number, word: string) => `${n} ${word}${n === 1 ? "" : "s"}`;
  return jobs === 0 ? `${requests} running` : `${count(jobs, "job")}, ${count(requests, "request")} running`;
}

const PATHS: Readonly<Record<PlaceName | "theme" | "key" | "help", string>> = {
  compare: "M4 5h6v14H4zM14 5h6v14h-6zM16 9h2M16 12h2M6 9h2",
  make: "M12 4v16M4 12h16M6.5 6.5l2 2M15.5 15.5l2 2",
  space: "M4 20 20 6m0 0h-6m6 0v6M7 8h.01M10 5h.01M14 18h.01M18 16h.01M6 13h.01",
  read: "M4 6h10M4 10h16M4 14h12M4 18h16",
  library: "M5 4v16M9 4v16M13 4l6 16M4 20h6",
  admin: "M4 7h16M4 12h16M4 17h16M8 5v4M15 10v4M10 15v4",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  key: "M15 9a4 4 0 1 0-3.5 4L14 15h2v2h2v2h3v-3l-6-6z",
  help: "M9 9a3 3 0 1 1 4 3c-1 .5-1 1-1 2m0 3h.01",
};

/** Draws one of the icons; the words next to it name it, so it is hidden from screen readers. */
export function Icon({ name, size = 20 }: { name: keyof typeof PATHS; size?: number }) {
  const look = { fill: "none", stroke: "currentColor", "stroke-width": "2", "aria-hidden": true } as const;
  return (
    <svg width={size} height={size} viewBox="0 0 24 24" {...look}>
      <path d={PATHS[name]} stroke-linecap="round" stroke-linejoin="round" />
    </svg>
  );
}
