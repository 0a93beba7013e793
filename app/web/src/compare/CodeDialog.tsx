import { useLayoutEffect, useState } from "preact/hooks";
import { api, dataOf } from "../api/client";
import { Query } from "../core/query";
import { capabilities, mayDo } from "../core/server";
import { copy, ShareLink } from "../frame/ShareLink";
import { profileActions, saveProfile } from "../library/store";
import { Button } from "../ui/Button";
import { Dialog } from "../ui/Dialog";
import { Segments, TextField } from "../ui/fields";
import { ErrorNote } from "../ui/Note";
import { interventions } from "./controls";
import { type CompareBody, compactDraft, compareBody, type Draft, draft, steeredBody, wholeAddress } from "./draft";
import { instruction, sharedResults } from "./store";

/** Shows the steered request as code, to copy, and saves a link to this view. */
export function CodeDialog({ onClose }: { onClose: () => void }) {
  const [chosen, setKind] = useState<CodeKind>("profile");
  const [profile, setProfile] = useState<SavedProfile | null>(null);
  const steering = JSON.stringify(interventions(draft.value.controls, draft.value.overall));
  const saved = profile?.steering === steering ? profile.name : null; // a dial that was moved since is not in it
  const kind = chosen === "profile" && saved === null ? "python" : chosen;
  const kinds = Object.entries(CODE_WORDS).filter(([one]) => one !== "profile" || saved !== null) as [CodeKind, string][]; // biome-ignore format: one line
  const [tried, setTried] = useState<{ text: string; copied: boolean } | null>(null);
  const model = capabilities.value?.model.name ?? "";
  const server = { origin: location.origin, model: kind === "profile" ? `${model}@${saved}` : model };
  const text = codeFor(kind, draft.value, compareBody(draft.value, instruction.value), server);
  return (
    <Dialog title="The same with code" wide onClose={onClose}>
      <Deploy saved={saved} model={model} onSaved={(name) => setProfile({ name, steering })} />
      <Segments label="Kind of code" options={kinds} value={kind} onChange={setKind} />
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
        <ShareLink
          view="compare"
          state={() => ({ ...compactDraft(draft.value), ...sharedResults() })}
          fallback={wholeAddress}
        />
      </div>
      <p class="small muted">
        A saved link is short. The server keeps the prompt, everything set in Play and the answers that are shown;
        whoever has the link and a key of this server sees it.
      </p>
    </Dialog>
  );
}

/** A profile that was saved here, and the steering it has. */
interface SavedProfile {
  name: string;
  steering: string;
}

/** Saves the dials as a profile, which is a model name for every OpenAI client, and asks it once. */
export function Deploy({
  saved,
  model,
  onSaved,
}: {
  saved: string | null;
  model: string;
  onSaved: (name: string) => void;
}) {
  const [name, setName] = useState("");
  const [trying] = useState(() => new Query((signal, asked: string) => askModel(asked, signal)));
  useLayoutEffect(() => () => trying.forget(), [trying, saved]); // what another profile answered
  const current = interventions(draft.value.controls, draft.value.overall);
  if (current.length === 0) return null;
  const save = async (event: Event) => {
    event.preventDefault();
    if (await saveProfile(name, current, "code")) onSaved(name);
  };
  const words = trying.data.value;
  return (
    <form class="stack" aria-label="As a model" onSubmit={(event) => void save(event)}>
      <div class="row">
        <TextField
          label="Save the dials as a profile, which is a model name"
          placeholder="warm-support"
          value={name}
          onChange={setName}
        />
        <Button label="Save it" submit disabled={name === "" || profileActions.busy.value || !mayDo("write")} />
        {saved && (
          <Button label="Try it" disabled={trying.busy.value} onClick={() => void trying.ask(`${model}@${saved}`)} />
        )}
      </div>
      <ErrorNote error={profileActions.errorAt("code") ?? trying.error.value} />
      {saved && (
        <p role="status">
          Requests for the model <code>{`${model}@${saved}`}</code> are steered like this.
          {words && ` It says: “${words}”`}
        </p>
      )}
    </form>
  );
}

/** What a model answers to the prompt of Play. */
async function askModel(model: string, signal: AbortSignal): Promise<string> {
  const { prompt, sampling } = draft.value;
  const body = { model, messages: [{ role: "user" as const, content: prompt }], max_tokens: sampling.max_tokens };
  const answer = await dataOf<{ choices: { message: { content: string } }[] }>(
    api.POST("/v1/chat/completions", { body: body as never, signal }),
  );
  return answer.choices[0]?.message.content ?? "";
}

/** The first one is what most applications begin with. */
const CODE_WORDS = {
  profile: "OpenAI client, as a model",
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
  return kind === "python" ? python(draft, server) : openai(draft, server, kind === "profile");
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

/** `steered`: the model is a profile, which steers by itself. */
function openai(draft: Draft, { origin, model }: Server, steered: boolean): string {
  const { steering, ...rest } = steeredBody(draft);
  const options = Object.entries({ model, ...rest }).map(([name, value]) => `${name}=${literal(value)}`);
  const call = draft.raw ? "completions" : "chat.completions";
  return [
    "import os",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}/v1", api_key=os.environ.get("STEERING_API_KEY", "none"))`,
    `answer = client.${call}.create(${options.join(", ")}${steered ? "" : `, extra_body={"steering": ${literal(steering)}}`})`,
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
