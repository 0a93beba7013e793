import { useLayoutEffect, useState } from "preact/hooks";
import { api, dataOf } from "../api/client";
import { Query } from "../core/query";
import { capabilities, mayDo } from "../core/server";
import { copy, ShareLink } from "../frame/ShareLink";
import { profileActions, saveProfile } from "../library/store";
import { Segments, TextField } from "../ui/fields";
import { Button, Dialog, ErrorNote, Form } from "../ui/parts";
import { code as codes, hints } from "../words.json";
import { interventions } from "./controls";
import { type CompareBody, compactDraft, compareBody, type Draft, draft, steeredBody, wholeAddress } from "./draft";
import { instruction, sharedResults } from "./store";

/** Shows the steered request as code, to copy, and saves a link to this view. */
export function CodeDialog({ onClose }: { onClose: () => void }) {
  const [chosen, setKind] = useState<CodeKind>("profile");
  const [profile, setProfile] = useState<{ name: string; steering: string } | null>(null);
  const steering = JSON.stringify(interventions(draft.value.controls, draft.value.overall));
  const saved = profile?.steering === steering ? profile.name : null; // a dial that was moved since is not in it
  const kind = chosen === "profile" && saved === null ? "python" : chosen;
  const kinds = Object.entries(codes).filter(([one]) => one !== "profile" || saved !== null) as [CodeKind, string][]; // biome-ignore format: one line
  const [tried, setTried] = useState<{ text: string; copied: boolean } | null>(null);
  const model = capabilities.value?.model.name ?? "";
  const server = { origin: location.origin, model: kind === "profile" ? `${model}@${saved}` : model };
  const text = codeFor(kind, draft.value, compareBody(draft.value, instruction.value), server);
  const take = async () => setTried({ text, copied: await copy(text) });
  const state = () => ({ ...compactDraft(draft.value), ...sharedResults() });
  return (
    <Dialog title="The same with code" wide onClose={onClose}>
      <Deploy saved={saved} model={model} onSaved={(name) => setProfile({ name, steering })} />
      <Segments label="Kind of code" options={kinds} value={kind} onChange={setKind} />
      <p class="small muted">{kind === "json" ? hints.codeOfAll : hints.codeOfOne}</p>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard */}
      <pre class="code" tabIndex={0}>
        {text}
      </pre>
      <div class="row">
        <Button label="Copy the code" kind="primary" onClick={take} />
        <span role="status">
          {tried?.text === text && (tried.copied ? "The code was copied." : "Select the code and copy it.")}
        </span>
      </div>
      <div class="row">
        <ShareLink view="compare" state={state} fallback={wholeAddress} />
      </div>
      <p class="small muted">{hints.savedLink}</p>
    </Dialog>
  );
}

type DeployProps = { saved: string | null; model: string; onSaved: (name: string) => void };

/** From the dials to a call of one's own: a profile, which is a model name for every OpenAI client, a key, a monitor, and a test. */
export function Deploy({ saved, model, onSaved }: DeployProps) {
  const [name, setName] = useState("");
  useLayoutEffect(() => () => trying.forget(), [saved]); // what another profile answered
  const current = interventions(draft.value.controls, draft.value.overall);
  if (current.length === 0) return null;
  const save = async () => {
    if (await saveProfile(name, current, "code")) onSaved(name);
  };
  const [words, busy] = [trying.data.value, trying.busy.value];
  const label = "Save the dials as a profile, which is a model name";
  const disabled = name === "" || profileActions.busy.value || !mayDo("write");
  return (
    <Form label="As a model" onSend={save}>
      <div class="row">
        <TextField label={label} placeholder="warm-support" value={name} onChange={setName} />
        <Button label="Save it" submit disabled={disabled} />
        {saved && <Button label="Try it" disabled={busy} onClick={() => trying.ask(`${model}@${saved}`)} />}
      </div>
      <ErrorNote error={profileActions.errorAt("code") ?? trying.error.value} />
      {saved && (
        <p role="status">
          Requests for the model <code>{`${model}@${saved}`}</code> are steered like this.
          {words && ` It says: “${words}”`} Next: <a href="#/admin">a key and a monitor</a>, then the code below.
        </p>
      )}
    </Form>
  );
}

const trying = new Query(async (signal, model: string) => {
  const { prompt, sampling } = draft.value;
  const body = { model, messages: [{ role: "user" as const, content: prompt }], max_tokens: sampling.max_tokens };
  const asked = api.POST("/v1/chat/completions", { body: body as never, signal });
  return (await dataOf<{ choices: { message: { content: string } }[] }>(asked)).choices[0]?.message.content ?? "";
});

export type CodeKind = keyof typeof codes;

type Server = { origin: string; model: string };

/** Returns one steered request as a person would write it, with or without a key in STEERING_API_KEY; as JSON the whole comparison. */
export function codeFor(kind: CodeKind, draft: Draft, comparison: CompareBody, { origin, model }: Server): string {
  const body = steeredBody(draft);
  if (kind === "json") return JSON.stringify(comparison, null, 2);
  if (kind === "curl")
    return [
      `curl ${origin}/v1/generate \\`,
      `  \${STEERING_API_KEY:+-H "Authorization: Bearer $STEERING_API_KEY"} \\`,
      '  -H "Content-Type: application/json" \\',
      `  -d '${JSON.stringify(body, null, 2).replaceAll("'", "'\\''")}'`,
    ].join("\n");
  const lines = (imported: string, client: string, call: string, field: string) => {
    const all = `print(*(choice.${field} for choice in answer.choices), sep="\\n\\n")`;
    const print = draft.sampling.n === 1 ? `print(answer.choices[0].${field})` : all;
    return `import os\n${imported}\n\nclient = ${client}\nanswer = client.${call}\n${print}`;
  };
  if (kind === "python") {
    const client = `Client("${origin}", api_key=os.environ.get("STEERING_API_KEY"))`;
    return lines("from steering.client import Client", client, `generate(${optionsOf(body)})`, "text");
  }
  const { steering, ...rest } = body;
  const extra = kind === "profile" ? "" : `, extra_body={"steering": ${literal(steering)}}`; // a profile steers by itself
  const client = `OpenAI(base_url="${origin}/v1", api_key=os.environ.get("STEERING_API_KEY", "none"))`;
  const [call, field] = draft.raw ? ["completions", "text"] : ["chat.completions", "message.content"];
  return lines("from openai import OpenAI", client, `${call}.create(${optionsOf({ model, ...rest })}${extra})`, field!);
}

const optionsOf = (body: object) => Object.entries(body).map(([name, value]) => `${name}=${literal(value)}`).join(", "); // biome-ignore format: one line

/** Writes a JSON value as a Python literal. */
export function literal(value: unknown): string {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  const entries = Object.entries(value).filter(([, one]) => one !== undefined);
  return `{${entries.map(([key, one]) => `${JSON.stringify(key)}: ${literal(one)}`).join(", ")}}`;
}
