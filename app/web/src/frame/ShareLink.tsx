import { useState } from "preact/hooks";
import { messageOf } from "../api/errors";
import type { View } from "../api/types";
import { Note } from "../ui/Note";
import { linkProblem, saveLink } from "./links";

interface Props {
  view: View;
  /** The state to save. */
  state: () => object;
  /** An address that holds the whole view, for a key that may not save; absent: there is none. */
  fallback?: () => string;
}

interface Saved {
  /** What was saved, as JSON. */
  state: string;
  address: string;
  /** Why the address holds the whole view and nothing was saved. */
  reason: string | null;
}

/** Saves the view on the server, and shows and copies the address that opens it. */
export function ShareLink({ view, state, fallback }: Props) {
  const [saved, setSaved] = useState<Saved | null>(null);
  const [copied, setCopied] = useState(false);
  const [problem, setProblem] = useState<string | null>(null);
  const shown = saved !== null && saved.state === JSON.stringify(state()) ? saved : null; // not after a change
  const share = async () => {
    setProblem(null);
    try {
      const found = await shared(view, state(), fallback);
      setSaved(found);
      setCopied(await copy(found.address));
    } catch (failure) {
      setProblem(messageOf(failure));
    }
  };
  return (
    <>
      <button type="button" onClick={() => void share()}>
        Save and copy a link
      </button>
      {shown && (
        <input
          type="text"
          class="grow"
          readOnly
          aria-label="Address of the link"
          value={shown.address}
          onFocus={(event) => event.currentTarget.select()}
        />
      )}
      <span role="status" class="small">
        {shown && (copied ? "The link was copied." : "Copy the address.")}
        {shown?.reason && ` It holds the whole view, because the server saved nothing: ${shown.reason}.`}
      </span>
      {problem && <Note kind="error">{problem}</Note>}
    </>
  );
}

async function shared(view: View, given: object, fallback?: () => string): Promise<Saved> {
  const state = JSON.stringify(given);
  try {
    return { state, address: await saveLink(view, given), reason: null };
  } catch (failure) {
    if (!fallback) throw failure;
    return { state, address: fallback(), reason: messageOf(failure) };
  }
}

/** Whether the browser let the page write to the clipboard; on an insecure origin it does not. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

/** Says why the link in the address could not be opened. */
export function LinkProblem() {
  return linkProblem.value && <Note kind="error">{linkProblem.value}</Note>;
}
