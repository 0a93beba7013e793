import { useState } from "preact/hooks";
import { copy, ShareLink } from "../frame/ShareLink";
import { capabilities } from "../frame/server";
import { Dialog } from "../ui/Dialog";
import { Segments } from "../ui/Segments";
import { CODE_WORDS, type CodeKind, codeFor } from "./code";
import { compactDraft, compareBody, draft, wholeAddress } from "./draft";
import { instruction } from "./store";

/** Shows the comparison as code, to copy, and saves a link to this view. */
export function CodeDialog({ onClose }: { onClose: () => void }) {
  const [kind, setKind] = useState<CodeKind>("curl");
  const [tried, setTried] = useState<{ text: string; copied: boolean } | null>(null);
  const body = compareBody(draft.value, instruction.value);
  const text = codeFor(kind, body, location.origin, capabilities.value?.model.name ?? "");
  return (
    <Dialog title="The same with code" wide onClose={onClose}>
      <Segments label="Kind of code" options={CODE_WORDS} value={kind} onChange={setKind} />
      {kind === "openai" && (
        <p class="small muted">The steered pane alone: this client asks for one answer at a time.</p>
      )}
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard */}
      <pre class="code" tabIndex={0}>
        {text}
      </pre>
      <div class="row">
        <button type="button" class="primary" onClick={async () => setTried({ text, copied: await copy(text) })}>
          Copy the code
        </button>
        <span role="status">
          {tried?.text === text && (tried.copied ? "The code was copied." : "Select the code and copy it.")}
        </span>
      </div>
      <div class="row">
        <ShareLink view="compare" state={() => compactDraft(draft.value)} fallback={wholeAddress} />
      </div>
      <p class="small muted">
        A saved link is short. The server keeps the prompt and everything set in Compare; whoever has the link and a key
        of this server sees it.
      </p>
    </Dialog>
  );
}
