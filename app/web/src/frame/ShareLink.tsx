import { effect, signal } from "@preact/signals";
import { useState } from "preact/hooks";
import { ApiError, api, apiKey, dataOf, messageOf, type Schemas, type View } from "../api/client";
import { addressLink, place, rememberState } from "../core/places";
import { Button, ErrorNote, Note } from "../ui/parts";

interface Props {
  view: View;
  state: () => object;
  /** An address that holds the whole view, for a key that may not save; absent: there is none. */
  fallback?: () => string;
}

/** Saves the view on the server, and shows and copies the address that opens it. */
export function ShareLink({ view, state, fallback }: Props) {
  const [saved, setSaved] = useState<Awaited<ReturnType<typeof shared>> | null>(null);
  const [copied, setCopied] = useState(false);
  const [problem, setProblem] = useState<unknown>(null);
  const shown = saved !== null && saved.state === JSON.stringify(state()) ? saved : null; // not after a change
  const share = async () => {
    setProblem(null);
    const found = await shared(view, state(), fallback);
    setSaved(found);
    setCopied(await copy(found.address));
  };
  const words = copied ? "The link was copied." : "Copy the address.";
  const reason = shown?.reason && ` It holds the whole view, because the server saved nothing: ${shown.reason}.`;
  const address = { "aria-label": "Address of the link", class: "grow", value: shown?.address ?? "" };
  return (
    <>
      <Button label="Save and copy a link" onClick={() => share().catch(setProblem)} />
      {shown && <input type="text" readOnly {...address} onFocus={(event) => event.currentTarget.select()} />}
      <span role="status" class="small">
        {shown && words}
        {reason}
      </span>
      <ErrorNote error={problem} />
    </>
  );
}

/** Saves the state of a view on the server, for the address that opens it; else the address holds it all, and the reason says why. */
async function shared(view: View, given: object, fallback?: () => string) {
  const state = JSON.stringify(given);
  try {
    const body = { view, state: given as Record<string, unknown> };
    const { url } = await dataOf<Schemas["LinkAnswer"]>(api.POST("/v1/links", { body }));
    return { state, address: new URL(url, location.origin).href, reason: null };
  } catch (failure) {
    if (!fallback) throw failure;
    return { state, address: fallback(), reason: messageOf(failure) };
  }
}

/** Whether the browser let the page write to the clipboard; on an insecure origin it does not. */
export const copy = (text: string): Promise<boolean> =>
  (navigator.clipboard?.writeText(text) ?? Promise.reject()).then(
    () => true,
    () => false,
  );

/** Says why the link in the address could not be opened. */
export const LinkProblem = () => linkProblem.value && <Note kind="error">{linkProblem.value}</Note>;

/** Why the link in the address could not be opened; null while nothing is wrong. */
const linkProblem = signal<string | null>(null);

/** Hands the state of the link in the address to its view, now and whenever a link is followed; a link that could not be read
 * is read again with a new key. `settings` gives what a user changes in the view: after a change the link leaves the address, so that
 * the way back to this address does not restore what was changed. Returns the function that ends it. */
export function followLink(view: View, restore: (state: unknown) => void, settings?: () => object): () => void {
  let newest = 0;
  let restored: string | null = null;
  let stopComparing = () => {};
  const stop = effect(() => {
    const id = addressLink.value;
    void apiKey.value;
    if (id !== null && id === restored) return;
    const turn = ++newest;
    stopComparing(); // so that restoring what was changed does not take the link out of the address again
    restored = linkProblem.value = null;
    if (id === null || place.peek() !== view) return;
    const take = (link: Schemas["LinkState"]) => {
      if (link.view !== view) throw new Error(`it was saved in ${link.view}, whose address is ${link.url.slice(1)}`);
      if (turn !== newest) return;
      restored = id;
      restore(link.state);
      const before = settings && JSON.stringify(settings());
      stopComparing = effect(() => {
        const changed = settings && JSON.stringify(settings()) !== before;
        if (changed && addressLink.peek() === id) rememberState(view, "");
      });
    };
    void dataOf<Schemas["LinkState"]>(api.GET("/v1/links/{link_id}", { params: { path: { link_id: id } } }))
      .then(take)
      .catch((failure) => {
        const wanted = failure instanceof ApiError && failure.status === 401;
        const words = wanted
          ? "Opening this link needs an API key."
          : `This link cannot be opened: ${messageOf(failure)}`;
        if (turn === newest) linkProblem.value = words;
      });
  });
  return () => {
    newest = -1;
    linkProblem.value = null;
    stop();
    stopComparing();
  };
}
