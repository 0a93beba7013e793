import { useState } from "preact/hooks";
import { capabilities } from "../frame/server";
import { Dialog } from "../ui/Dialog";
import { Segments } from "../ui/Segments";
import { CODE_WORDS, type CodeKind, codeFor } from "./code";
import { compareBody, draft } from "./draft";
import { instruction } from "./store";

/** Shows the comparison as code, to copy, and the address of this view. */
export function CodeDialog({ onClose }: { onClose: () => void }) {
  const [kind, setKind] = useState<CodeKind>("curl");
  const [copied, setCopied] = useState("");
  const body = compareBody(draft.value, instruction.value);
  const text = codeFor(kind, body, location.origin, capabilities.value?.model.name ?? "");
  const copy = async (what: string, value: string) => {
    await navigator.clipboard.writeText(value);
    setCopied(what);
  };
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
        <button type="button" class="primary" onClick={() => void copy("code", text)}>
          Copy the code
        </button>
        <button type="button" onClick={() => void copy("link", location.href)}>
          Copy a link to this view
        </button>
        <span role="status">{copied && `The ${copied} was copied.`}</span>
      </div>
    </Dialog>
  );
}
