import { useEffect, useState } from "preact/hooks";
import { keyState, keyWanted } from "../api/key";
import { retrying } from "../api/retry";
import { KeyDialog } from "./dialogs";
import { Icon } from "./icons";
import { place, TITLES } from "./places";
import { capabilities, load, serverTrouble } from "./server";
import { helpShown } from "./shortcuts";
import { nextTheme, theme } from "./theme";

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
      <ServerFacts />
      <button type="button" class="quiet" onClick={() => setKeyShown(true)}>
        <Icon name="key" size={16} />
        <span class="wide-only">{KEY_WORDS[keyState.value]}</span>
        <span class="visually-hidden">API key</span>
      </button>
      <button type="button" class="quiet" onClick={nextTheme} title="Change the colours">
        <Icon name="theme" size={16} />
        <span class="visually-hidden">Theme: {theme.value}. Change</span>
      </button>
      <button type="button" class="quiet wide-only" title="Keys" onClick={() => (helpShown.value = true)}>
        <Icon name="help" size={16} />
        <span class="visually-hidden">Keyboard help</span>
      </button>
      {keyShown && <KeyDialog onClose={() => setKeyShown(false)} />}
    </header>
  );
}

/** What stands for the model's name while it is not known. */
const UNKNOWN_WORDS = {
  wanted: "Waiting for a key",
  limited: "Not shown to this key",
  set: "Connecting",
  none: "Connecting",
} as const;

function ServerFacts() {
  const model = capabilities.value?.model;
  const now = load.value;
  const busy = retrying.value > 0;
  const state = serverTrouble.value ? "off" : !busy && (model || keyState.value === "limited") ? "" : "waiting";
  const known = model?.name ?? (serverTrouble.value ? "Server not ready" : UNKNOWN_WORDS[keyState.value]);
  return (
    <p class="facts" role="status" aria-live="off">
      <span class="row">
        <span class={`dot ${state}`} aria-hidden="true" />
        <strong>{busy ? "Busy, trying again" : known}</strong>
      </span>
      {model && <span class="wide-only">{model.device}</span>}
      {now && (
        <span class="wide-only number">
          {now.running} running{now.waiting > 0 && `, ${now.waiting} waiting`}
        </span>
      )}
      {now?.tokensPerSecond != null && <span class="wide-only number">{Math.round(now.tokensPerSecond)} tok/s</span>}
    </p>
  );
}
