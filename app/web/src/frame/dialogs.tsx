import { useState } from "preact/hooks";
import { apiKey, keyRefusal, keyWanted, setKey } from "../api/key";
import { Dialog } from "../ui/Dialog";
import { helpShown, KEYS } from "./shortcuts";

/** Asks for the API key of this tab, and says what a key may not do. */
export function KeyDialog({ onClose }: { onClose: () => void }) {
  const [text, setText] = useState("");
  const save = (event: Event) => {
    event.preventDefault();
    if (text.trim() === "") return;
    setKey(text.trim());
    onClose();
  };
  return (
    <Dialog title="API key" onClose={onClose}>
      {keyWanted.value && (
        <p class="note notice">This server needs a key. {apiKey.value && "The one you gave is not known to it."}</p>
      )}
      {keyRefusal.value && <p class="note notice">The server refused something: {keyRefusal.value}</p>}
      <form class="stack" onSubmit={save}>
        <label class="field">
          <span>Key</span>
          <input
            type="password"
            autocomplete="off"
            value={text}
            placeholder={apiKey.value ? "A key is set" : ""}
            onInput={(event) => setText(event.currentTarget.value)}
          />
        </label>
        <p class="small muted">
          It is kept in this tab only, ends with it, and is sent to this server alone. Its scopes decide what it may do:
          generate (answers), read (the library), write (vectors, profiles, jobs), admin.
        </p>
        <div class="row">
          <button type="submit" class="primary" disabled={text.trim() === ""}>
            Use this key
          </button>
          {apiKey.value && (
            <button type="button" onClick={() => setKey(null)}>
              Remove the key
            </button>
          )}
        </div>
      </form>
    </Dialog>
  );
}

/** Lists the keys of the keyboard. */
export function HelpDialog() {
  return (
    <Dialog
      title="Keyboard"
      onClose={() => {
        helpShown.value = false;
      }}
    >
      <dl class="keys">
        {KEYS.map(([key, meaning]) => (
          <div class="row" key={key}>
            <dt>
              <kbd>{key}</kbd>
            </dt>
            <dd>{meaning}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
