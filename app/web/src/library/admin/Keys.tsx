import { useRef, useState } from "preact/hooks";
import { apiKey, type Key } from "../../api/client";
import { given } from "../../core/state";
import { copy } from "../../frame/ShareLink";
import { Check, ChoiceField, OptionalNumber, partsOf, TextField } from "../../ui/fields";
import { Button, Each, ErrorNote, Form, List, LoadNote, More, Note, Panel, shortTime, Warnings } from "../../ui/parts";
import { copyKey, hints, lifetimes, ownSteering, scopes } from "../../words.json";
import { NoPermission } from "./Policy";
import * as admin from "./store";

/** The keys of the server: who has one, what each may not do, and how to make, replace and revoke them. */
export function Keys() {
  const { data } = admin.keys;
  const list = data.value?.data;
  const none = apiKey.value === null ? hints.openServer : hints.noKeys;
  return (
    <Panel title="API keys">
      {admin.refusal.value && <NoPermission />}
      <LoadNote what="API keys" query={admin.keys} />
      <Warnings of={data.value?.warnings} />
      <Each of={admin.fresh.value} row={(one) => <NewKeyNote key={one.key.id} made={one} />} />
      <List of={list} none={none} row={(key) => <KeyRow key={key.id} item={key} />} />
      {list && <KeyForm known={list.length} />}
    </Panel>
  );
}

function KeyRow({ item }: { item: Key }) {
  const [asked, setAsked] = useState(false);
  const place = `key ${item.id}` as const;
  const busy = admin.keyActions.busy.value;
  const limits = admin.mayNot(item);
  const own = admin.isOwnKey(item.id);
  const error = admin.keyActions.errorAt(place);
  const last = admin.isLastAdmin(error);
  const used = item.last_used_at ? `last used ${shortTime(item.last_used_at)}` : "never used";
  const ends = item.expires_at ? `, expires ${shortTime(item.expires_at)}` : "";
  const revoke = () => admin.revokeKey(item.id, place, last);
  const label = `Revoke ${item.name}${last ? " although it is the last" : ""}`;
  return (
    <li class="key-row">
      <span>
        <strong>{item.name}</strong> {own && <span class="badge good">this tab's key</span>}{" "}
        {item.scopes.map((scope) => (
          <span key={scope} class="badge">
            {scope}
          </span>
        ))}
        <span class="small muted block">
          {`${item.namespace ?? "shared"}, made ${shortTime(item.created_at)}, ${used}${ends}`}
        </span>
        {limits && <span class="small block">{limits}</span>}
      </span>
      {asked ? (
        <span class="row">
          <Button label={label} kind="danger" disabled={busy} onClick={revoke} />
          {/* In the place of the button that asks, which has the focus. */}
          <Button label="Keep it" onClick={() => setAsked(false)} />
        </span>
      ) : (
        <span class="row">
          <Button label="Rotate" hidden={` ${item.name}`} disabled={busy} onClick={() => admin.rotateKey(item)} />
          <Button label="Revoke" hidden={` ${item.name}`} kind="quiet" disabled={busy} onClick={() => setAsked(true)} />
        </span>
      )}
      {asked && own && <Note kind="notice">{hints.ownKey}</Note>}
      <ErrorNote error={error} />
    </li>
  );
}

function NewKeyNote({ made: { key, replaces } }: { made: admin.FreshKey }) {
  const [copied, setCopied] = useState<boolean | null>(null);
  const text = useRef<HTMLElement>(null);
  const place = `fresh ${key.id}` as const;
  const take = async () => {
    const done = await copy(key.key);
    setCopied(done);
    if (!done && text.current) getSelection()?.selectAllChildren(text.current); // so that it can be copied by hand
  };
  const revoke = () => replaces && admin.revokeKey(replaces.id, place);
  const busy = admin.keyActions.busy.value;
  return (
    <Note kind="notice">
      <span>
        The key of {key.name}, shown this once:{" "}
        <code class="number" ref={text}>
          {key.key}
        </code>
      </span>
      {key.key === apiKey.value && <span>This tab uses it from now on.</span>}
      <span class="row">
        <Button label={copyKey[`${copied}`]} onClick={take} />
        {replaces && <Button label="Revoke the old one" kind="danger" disabled={busy} onClick={revoke} />}
        <Button label="Done" kind="quiet" onClick={() => admin.dismissKey(key.id)} />
      </span>
      {copied === false && (
        <span class="small" role="status">
          {hints.noCopy}
        </span>
      )}
      {replaces && <span class="small">{hints.oldKey}</span>}
      <ErrorNote error={admin.keyActions.errorAt(place)} />
    </Note>
  );
}

const EMPTY = { name: "", scopes: ["generate", "read"] as readonly admin.Scope[], namespace: "shared", days: "0" as keyof typeof lifetimes, requests: null as number | null, dose: null as number | null, own: "any" as keyof typeof ownSteering }; // biome-ignore format: one line

/** Makes a key. What was typed stays when the server refuses it. `known`: how many keys there are. */
function KeyForm({ known }: { known: number }) {
  const first = known === 0 && apiKey.value === null;
  const [fields, setFields] = useState({ ...EMPTY, scopes: first ? (["admin"] as const) : EMPTY.scopes });
  const field = partsOf(fields, (part) => setFields((before) => ({ ...before, ...part })));
  const save = async () => {
    const { name, namespace, scopes, days, requests, dose, own } = fields;
    const made = await admin.createKey({
      name,
      scopes: [...scopes],
      namespace: namespace.trim() || "shared",
      expires_at: admin.expiry(Number(days)),
      limits: given({ own_steering: own, requests_per_minute: requests, max_relative_dose: dose }),
    });
    if (made) setFields((now) => (now === fields ? EMPTY : now)); // the next one may be typed already
  };
  const { value: chosen, onChange: choose } = field("scopes");
  const disabled = admin.keyActions.busy.value || fields.name.trim() === "" || chosen.length === 0;
  const state = { disabled, error: admin.keyActions.errorAt("form") };
  const none = "no limit";
  return (
    <Form label="New key" onSend={save} send="Make the key" {...state}>
      <h3>Make a key</h3>
      <div class="fields">
        <TextField label="Name of its owner" {...field("name")} />
        <TextField label="Namespace" {...field("namespace")} />
        <ChoiceField label="Valid" options={lifetimes} {...field("days")} />
      </div>
      <fieldset class="plain scopes" aria-label="Scopes">
        {admin.SCOPES.map((scope) => (
          <Check
            key={scope}
            value={chosen.includes(scope)}
            onChange={(on) => choose(admin.SCOPES.filter((one) => (one === scope ? on : chosen.includes(one))))}
          >
            <span>{scopes[scope]}</span>
          </Check>
        ))}
      </fieldset>
      <More summary="Limits">
        <div class="fields">
          <OptionalNumber label="Requests a minute" step={1} min={1} placeholder={none} {...field("requests")} />
          <OptionalNumber label="Largest relative dose" step={0.01} min={0.01} placeholder={none} {...field("dose")} />
          <ChoiceField label="May steer" options={ownSteering} {...field("own")} />
        </div>
      </More>
    </Form>
  );
}
