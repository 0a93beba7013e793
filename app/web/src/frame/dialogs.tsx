import { signal } from "@preact/signals";
import { useState } from "preact/hooks";
import glossary from "../../../../docs/glossary.md?url";
import latentSpace from "../../../../docs/latent_space.md?url";
import playground from "../../../../docs/playground.md?url";
import { apiKey, keyRefusal, keyWanted, setKey } from "../api/client";
import { open, PLACES, place } from "../core/places";
import { typed } from "../ui/fields";
import { Button, Dialog, Facts, Form, More } from "../ui/parts";
import { hints, keys, terms } from "../words.json";

export function KeyDialog({ onClose }: { onClose: () => void }) {
  const [text, setText] = useState("");
  const empty = text.trim() === "";
  const save = () => {
    if (empty) return;
    setKey(text.trim());
    onClose();
  };
  const unknown = keyWanted.value && apiKey.value !== null;
  const shown = apiKey.value && !unknown ? "A key is set" : "";
  return (
    <Dialog title="API key" onClose={onClose}>
      {keyWanted.value && (
        <p class="note notice">This server needs a key. {unknown && "The one you gave is not known to it."}</p>
      )}
      {keyRefusal.value && <p class="note notice">The server refused something: {keyRefusal.value}</p>}
      <Form onSend={save}>
        <label class="field">
          <span>Key</span>
          <input type="password" autocomplete="off" autofocus value={text} placeholder={shown} {...typed(setText)} />
        </label>
        <p class="small muted">{hints.key}</p>
        <div class="row">
          <Button label="Use this key" kind="primary" submit disabled={empty} />
          {apiKey.value && <Button label="Remove the key" onClick={() => setKey(null)} />}
        </div>
      </Form>
    </Dialog>
  );
}

/** Lists the keys of the keyboard, and the pages of the documentation. */
export const HelpDialog = () => (
  <Dialog title="Keyboard" onClose={() => (helpShown.value = false)}>
    <dl class="keys">
      {Object.entries(keys).map(([key, meaning]) => (
        <div class="row" key={key}>
          <dt>
            <kbd>{key}</kbd>
          </dt>
          <dd>{meaning}</dd>
        </div>
      ))}
    </dl>
    <More summary="Words of this page">
      <Facts of={Object.entries(terms)} />
    </More>
    <ul class="stack" aria-label="Documentation">
      {(["playground", "glossary", "latent_space", "api"] as const).map((page) => (
        <li key={page}>
          <DocLink page={page} />
        </li>
      ))}
    </ul>
  </Dialog>
);

/** What the shown place does on the keys that every place shares. */
type PlaceActions = { run?: () => void; stop?: () => void; reroll?: () => void };

let actions: PlaceActions = {};
export const helpShown = signal(false);

/** Says what the shown place does; returns the function that takes it back. */
export function useActions(given: PlaceActions): () => void {
  actions = given;
  return () => {
    if (actions === given) actions = {};
  };
}

/** Handles a key press anywhere on the page. Letters and digits count only outside text fields. */
export function onKey(event: KeyboardEvent): void {
  if (document.querySelector("dialog[open]")) return; // nothing happens behind a window
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!event.repeat) actions.run?.(); // a key that is held asks once
    return;
  }
  if (event.key === "Escape") actions.stop?.();
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target instanceof HTMLElement && event.target.matches(TEXT_FIELDS)) return;
  const index = Number(event.key) - 1;
  const target = PLACES[index];
  if (target && target !== place.value) open(target);
  else if (event.key.toLowerCase() === "r" && !event.repeat) actions.reroll?.();
  else if (event.key === "?") helpShown.value = true;
}

const TEXT_FIELDS = "textarea, select, [contenteditable], input:not([type=range], [type=checkbox], [type=radio])";

const PAGES = {
  latent_space: [latentSpace, "What latent space is, in pictures"],
  glossary: [glossary, "The words of this page explained"],
  playground: [playground, "What is where in the playground"],
  api: ["/openapi.json", "The API, as an OpenAPI document"],
} as const;

/** A link to a page of the documentation, which comes with the server as a plain text. */
export function DocLink({ page }: { page: keyof typeof PAGES }) {
  const [address, words] = PAGES[page];
  return (
    <a href={address} target="_blank" rel="noreferrer">
      {words}
    </a>
  );
}

/** A word with its explanation in place, on hover and for the keyboard. */
export function Term({ name }: { name: string }) {
  const words: string | undefined = terms[name as keyof typeof terms];
  if (words === undefined) return <>{name}</>;
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: the explanation must be reachable by keyboard
    <span class="term" tabIndex={0} role="note" aria-label={`${name}: ${words}`} data-words={words}>
      {name}
    </span>
  );
}
