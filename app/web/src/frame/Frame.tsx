import type { ComponentChildren, ComponentType } from "preact";
import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import { keyState, keyWanted, retrying } from "../api/client";
import { openJobs } from "../core/jobs";
import { MAIN, type PlaceName, place, placeHref } from "../core/places";
import { capabilities, load, serverTrouble } from "../core/server";
import { announcement, Button, Note, toast } from "../ui/parts";
import { icons, places as TITLES } from "../words.json";
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
  const [loaded, setLoaded] = useState<Partial<Record<PlaceName, ComponentType>>>({});
  const [failed, setFailed] = useState<PlaceName | null>(null);
  const Place = loaded[name];
  const mode = name === "compare" || name === "read";
  useEffect(() => {
    document.title = `${TITLES[name]} · steering-server`;
    setFailed(null);
    MODULES[name]().then(
      (module) => setLoaded((before) => ({ ...before, [name]: module.default })),
      () => setFailed((before) => (place.value === name ? name : before)),
    );
  }, [name]);
  // Before the page is painted, so that no key is lost that is pressed as soon as it is seen.
  useLayoutEffect(() => {
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  return (
    <div class="frame">
      <Button kind="skip" label="Skip to the content" onClick={() => document.getElementById("main")?.focus()} />
      <nav class="rail" aria-label="Places">
        {MAIN.map((one) => (
          <PlaceLink key={one} to={one} on={one === (mode ? "compare" : name)}>
            <Icon name={one} />
            {TITLES[one]}
          </PlaceLink>
        ))}
      </nav>
      <TopBar />
      <main class="place" id="main" tabIndex={-1} aria-busy={!Place && failed !== name}>
        {serverTrouble.value && <Note kind="error">{serverTrouble.value} Trying again every few seconds.</Note>}
        {failed === name && (
          // After an upgrade of the server a module has another address, which a new page knows.
          <Note kind="error">
            {TITLES[name]} could not be loaded. Load the page again: the server may have been upgraded, or cannot be
            reached.
          </Note>
        )}
        {mode && (
          <nav class="segments modes" aria-label="Modes">
            <PlaceLink to="compare">Steer</PlaceLink>
            <PlaceLink to="read">Read</PlaceLink>
          </nav>
        )}
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

type LinkProps = { to: PlaceName; on?: boolean; kind?: string; title?: string; children: ComponentChildren };

/** A link to a place, marked where it is the place that is shown. */
const PlaceLink = ({ to, on = to === place.value, kind, title, children }: LinkProps) => (
  <a class={kind} href={placeHref(to)} title={title} aria-current={on ? "page" : undefined}>
    {children}
  </a>
);

const KEY_WORDS = { wanted: "Key needed", limited: "Key: limited", set: "Key set", none: "No key" } as const;

/** Shows the place, the model and its device, what runs, the key and the theme. */
export function TopBar() {
  const [keyShown, setKeyShown] = useState(false);
  const model = capabilities.value?.model;
  const now = load.value;
  const busy = retrying.value > 0;
  const state = serverTrouble.value ? "off" : !busy && (model || keyState.value === "limited") ? "" : "waiting";
  const known = model?.name ?? (serverTrouble.value ? "Server not ready" : (UNKNOWN[keyState.value] ?? "Connecting"));
  const help = { title: "Keys and documentation", onClick: () => (helpShown.value = true) };
  useEffect(() => {
    if (keyWanted.value) setKeyShown(true);
  }, [keyWanted.value]);
  return (
    <header class="top-bar">
      <h1>{TITLES[place.value]}</h1>
      <JobTray />
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
      {(["library", "admin"] as const).map((name) => (
        <PlaceLink key={name} to={name} kind="icon-link" title={TITLES[name]}>
          <Icon name={name} size={16} />
          <span class="visually-hidden">{TITLES[name]}</span>
        </PlaceLink>
      ))}
      <Button kind="quiet" hidden="API key" onClick={() => setKeyShown(true)}>
        <Icon name="key" size={16} />
        <span class="wide-only">{KEY_WORDS[keyState.value]}</span>
      </Button>
      <Button kind="quiet" hidden={`Theme: ${theme.value}. Change`} title="Change the colours" onClick={nextTheme}>
        <Icon name="theme" size={16} />
      </Button>
      <Button kind="quiet wide-only" hidden="Keyboard help and documentation" {...help}>
        <Icon name="help" size={16} />
      </Button>
      {keyShown && <KeyDialog onClose={() => setKeyShown(false)} />}
    </header>
  );
}

/** What stands for the model's name while it is not known. */
const UNKNOWN: Readonly<Record<string, string>> = { wanted: "Waiting for a key", limited: "Not shown to this key" };

/** How much is being worked on: jobs, and requests that are in the batch. */
export function workWords(jobs: number, requests: number): string {
  const count = (n: number, word: string) => `${n} ${word}${n === 1 ? "" : "s"}`;
  return jobs === 0 ? `${requests} running` : `${count(jobs, "job")}, ${count(requests, "request")} running`;
}

/** Draws one of the icons; the words next to it name it, so it is hidden from screen readers. */
function Icon({ name, size = 20 }: { name: keyof typeof icons; size?: number }) {
  const look = { fill: "none", stroke: "currentColor", "stroke-width": "2", "aria-hidden": true } as const;
  return (
    <svg width={size} height={size} viewBox="0 0 24 24" {...look}>
      <path d={icons[name]} stroke-linecap="round" stroke-linejoin="round" />
    </svg>
  );
}
