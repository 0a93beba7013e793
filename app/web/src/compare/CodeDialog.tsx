import { useState } from "preact/hooks";
import { capabilities } from "../core/server";
import { copy, ShareLink } from "../frame/ShareLink";
import { Button } from "../ui/Button";
import { Dialog } from "../ui/Dialog";
import { Segments } from "../ui/fields";
import { type CompareBody, compactDraft, compareBody, type Draft, draft, steeredBody, wholeAddress } from "./draft";
import { instruction } from "./store";

/** Shows the steered request as code, to copy, and saves a link to this view. */
export function CodeDialog({ onClose }: { onClose: () => void }) {
  const [kind, setKind] = useState<CodeKind>("python");
  const [tried, setTried] = useState<{ text: string; copied: boolean } | null>(null);
  const server = { origin: location.origin, model: capabilities.value?.model.name ?? "" };
  const text = codeFor(kind, draft.value, compareBody(draft.value, instruction.value), server);
  return (
    <Dialog title="The same with code" wide onClose={onClose}>
      <Segments label="Kind of code" options={CODE_WORDS} value={kind} onChange={setKind} />
      <p class="small muted">
        {kind === "json"
          ? "The request of all panes, for POST /v1/compare."
          : "The steered answer alone, as an application asks for it. A key is read from STEERING_API_KEY, if there is one."}
      </p>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard */}
      <pre class="code" tabIndex={0}>
        {text}
      </pre>
      <div class="row">
        <Button
          label="Copy the code"
          kind="primary"
          onClick={async () => setTried({ text, copied: await copy(text) })}
        />
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

/** The first one is what most applications begin with. */
export const CODE_WORDS = {
  python: "Python",
  openai: "OpenAI client",
  curl: "curl",
  json: "JSON of all panes",
} as const;

export type CodeKind = keyof typeof CODE_WORDS;

/** Where the code sends its request. */
interface Server {
  origin: string;
  model: string;
}

/** Returns one steered request as a person would write it, with or without a key in STEERING_API_KEY; as JSON the whole comparison. */
export function codeFor(kind: CodeKind, draft: Draft, comparison: CompareBody, server: Server): string {
  if (kind === "json") return JSON.stringify(comparison, null, 2);
  if (kind === "curl") return curl(draft, server);
  return kind === "python" ? python(draft, server) : openai(draft, server);
}

function curl(draft: Draft, { origin }: Server): string {
  const json = JSON.stringify(steeredBody(draft), null, 2).replaceAll("'", "'\\''");
  return [
    `curl ${origin}/v1/generate \\`,
    `  \${STEERING_API_KEY:+-H "Authorization: Bearer $STEERING_API_KEY"} \\`,
    '  -H "Content-Type: application/json" \\',
    `  -d '${json}'`,
  ].join("\n");
}

function python(draft: Draft, { origin }: Server): string {
  const options = Object.entries(steeredBody(draft)).map(([name, value]) => `${name}=${literal(value)}`);
  return [
    "import os",
    "from steering.client import Client",
    "",
    `client = Client("${origin}", api_key=os.environ.get("STEERING_API_KEY"))`,
    `answer = client.generate(${options.join(", ")})`,
    printed(draft, "text"),
  ].join("\n");
}

function openai(draft: Draft, { origin, model }: Server): string {
  const { steering, ...rest } = steeredBody(draft);
  const options = Object.entries({ model, ...rest }).map(([name, value]) => `${name}=${literal(value)}`);
  const call = draft.raw ? "completions" : "chat.completions";
  return [
    "import os",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}/v1", api_key=os.environ.get("STEERING_API_KEY", "none"))`,
    `answer = client.${call}.create(${options.join(", ")}, extra_body={"steering": ${literal(steering)}})`,
    printed(draft, draft.raw ? "text" : "message.content"),
  ].join("\n");
}

function printed({ sampling }: Draft, field: string): string {
  return sampling.n === 1 ? `print(answer.choices[0].${field})` : `print(*(choice.${field} for choice in answer.choices), sep="\\n\\n")`; // biome-ignore format: one line
}

/** Writes a JSON value as a Python literal. */
export function literal(value: unknown): string {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  const entries = Object.entries(value).filter(([, one]) => one !== undefined);
  return `{${entries.map(([key, one]) => `${JSON.stringify(key)}: ${literal(one)}`).join(", ")}}`;
}
