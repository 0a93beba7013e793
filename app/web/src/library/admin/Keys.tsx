import { useRef, useState } from "preact/hooks";
import { apiKey } from "../../api/retry";
import type { Key, KeyRequest } from "../../api/types";
import { copy } from "../../frame/ShareLink";
import { Button } from "../../ui/Button";
import { type Bound, Check, ChoiceField, OptionalNumber, partsOf, TextField } from "../../ui/fields";
import { ErrorNote, Note, shortTime, Warnings } from "../../ui/Note";
import { LoadNote } from "../LoadNote";
import { NoPermission } from "./Policy";
import {
  createKey,
  dismissKey,
  expiry,
  type FreshKey,
  fresh,
  isLastAdmin,
  isOwnKey,
  keyActions,
  keys,
  mayNot,
  OWN_STEERING,
  type OwnSteering,
  refusal,
  revokeKey,
  rotateKey,
  SCOPE_WORDS,
  SCOPES,
  type Scope,
} from "./store";

/** The keys of the server: who has one, what each may not do, and how to make, replace and revoke them. */
export function Keys() {
  const list = keys.data.value?.data;
  return (
    <section class="panel stack" aria-label="API keys">
      <h2>API keys</h2>
      {refusal.value ? (
        <NoPermission />
      ) : (
        <>
          <LoadNote what="API keys" query={keys} again={() => keys.load()} />
          <Warnings of={keys.data.value?.warnings} />
          {list?.length === 0 && (
            <p class="muted">
              {apiKey.value === null
                ? "None: everybody who reaches this server may do everything. The first key needs the scope admin; from then on every request needs a key."
                : "None in the database. Keys from the environment and from the key file are not listed."}
            </p>
          )}
          {fresh.value.map((one) => (
            <NewKeyNote key={one.key.id} made={one} />
          ))}
          <ul class="stack">
            {list?.map((key) => (
              <KeyRow key={key.id} item={key} />
            ))}
          </ul>
          {list && <KeyForm known={list.length} />}
        </>
      )}
    </section>
  );
}

function KeyRow({ item }: { item: Key }) {
  const [asked, setAsked] = useState(false);
  const place = `key ${item.id}` as const;
  const busy = keyActions.busy.value;
  const limits = mayNot(item);
  const own = isOwnKey(item.id);
  const error = keyActions.errorAt(place);
  const last = isLastAdmin(error);
  const used = item.last_used_at ? `last used ${shortTime(item.last_used_at)}` : "never used";
  const ends = item.expires_at ? `, expires ${shortTime(item.expires_at)}` : "";
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
          {item.namespace ?? "shared"}, made {shortTime(item.created_at)}, {used}
          {ends}
        </span>
        {limits && <span class="small block">{limits}</span>}
      </span>
      <span class="row">
        {asked ? (
          <>
            <Button
              label={last ? `Revoke ${item.name} although it is the last` : `Revoke ${item.name}`}
              kind="danger"
              disabled={busy}
              onClick={() => void revokeKey(item.id, place, last)}
            />
            {/* In the place of the button that asks, which has the focus. */}
            <Button label="Keep it" disabled={false} onClick={() => setAsked(false)} />
          </>
        ) : (
          <>
            <Button disabled={busy} onClick={() => void rotateKey(item)}>
              Rotate<span class="visually-hidden"> {item.name}</span>
            </Button>
            <Button kind="quiet" disabled={busy} onClick={() => setAsked(true)}>
              Revoke<span class="visually-hidden"> {item.name}</span>
            </Button>
          </>
        )}
      </span>
      {asked && own && (
        <Note kind="notice">
          This tab uses this key: once it is revoked, the page can do nothing without another one.
        </Note>
      )}
      <ErrorNote error={error} />
    </li>
  );
}

const COPY_WORDS = { true: "Copied", false: "Select the key", null: "Copy the key" } as const;

function NewKeyNote({ made: { key, replaces } }: { made: FreshKey }) {
  const [copied, setCopied] = useState<boolean | null>(null);
  const text = useRef<HTMLElement>(null);
  const place = `fresh ${key.id}` as const;
  const take = async () => {
    const done = await copy(key.key);
    setCopied(done);
    if (!done && text.current) getSelection()?.selectAllChildren(text.current); // so that it can be copied by hand
  };
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
        <Button label={COPY_WORDS[`${copied}`]} onClick={() => void take()} />
        {replaces && (
          <Button
            label="Revoke the old one"
            kind="danger"
            disabled={keyActions.busy.value}
            onClick={() => void revokeKey(replaces.id, place)}
          />
        )}
        <Button label="Done" kind="quiet" onClick={() => dismissKey(key.id)} />
      </span>
      {copied === false && (
        <span class="small" role="status">
          The browser does not let this page copy. The key is selected instead.
        </span>
      )}
      {replaces && (
        <span class="small">The old key works until it is revoked: give the new one to its users first.</span>
      )}
      <ErrorNote error={keyActions.errorAt(place)} />
    </Note>
  );
}

/** Days until a key ends; the server refuses it from then on. */
const LIFETIMES = { "0": "until it is revoked", "30": "30 days", "90": "90 days", "365": "a year" } as const;

interface Fields {
  name: string;
  scopes: readonly Scope[];
  namespace: string;
  days: keyof typeof LIFETIMES;
  requests: number | null;
  dose: number | null;
  own: OwnSteering;
}

const EMPTY: Fields = {
  name: "",
  scopes: ["generate", "read"],
  namespace: "shared",
  days: "0",
  requests: null,
  dose: null,
  own: "any",
};

function requestOf(fields: Fields): KeyRequest {
  return {
    name: fields.name,
    scopes: [...fields.scopes],
    namespace: fields.namespace.trim() || "shared",
    expires_at: expiry(Number(fields.days)),
    limits: {
      own_steering: fields.own,
      ...(fields.requests === null ? {} : { requests_per_minute: fields.requests }),
      ...(fields.dose === null ? {} : { max_relative_dose: fields.dose }),
    },
  };
}

/** Makes a key. What was typed stays when the server refuses it. `known`: how many keys there are. */
function KeyForm({ known }: { known: number }) {
  const first = known === 0 && apiKey.value === null;
  const [fields, setFields] = useState<Fields>({ ...EMPTY, scopes: first ? ["admin"] : EMPTY.scopes });
  const field = partsOf(fields, (part) => setFields((before) => ({ ...before, ...part })));
  const save = async (event: Event) => {
    event.preventDefault();
    const made = await createKey(requestOf(fields));
    if (made) setFields((now) => (now === fields ? EMPTY : now)); // the next one may be typed already
  };
  return (
    <form class="stack" aria-label="New key" onSubmit={(event) => void save(event)}>
      <h3>Make a key</h3>
      <div class="fields">
        <TextField label="Name of its owner" {...field("name")} />
        <TextField label="Namespace" {...field("namespace")} />
        <ChoiceField label="Valid" options={LIFETIMES} {...field("days")} />
      </div>
      <Scopes {...field("scopes")} />
      <details class="more">
        <summary>Limits</summary>
        <div class="fields">
          <OptionalNumber label="Requests a minute" step={1} min={1} placeholder="no limit" {...field("requests")} />
          <OptionalNumber
            label="Largest relative dose"
            step={0.01}
            min={0.01}
            placeholder="no limit"
            {...field("dose")}
          />
          <ChoiceField label="May steer" options={OWN_STEERING} {...field("own")} />
        </div>
      </details>
      <div class="row">
        <Button
          label="Make the key"
          submit
          disabled={keyActions.busy.value || fields.name.trim() === "" || fields.scopes.length === 0}
        />
      </div>
      <ErrorNote error={keyActions.errorAt("form")} />
    </form>
  );
}

function Scopes({ value, onChange }: Bound<readonly Scope[]>) {
  return (
    <fieldset class="plain scopes" aria-label="Scopes">
      {SCOPES.map((scope) => (
        <Check
          key={scope}
          value={value.includes(scope)}
          onChange={(on) => onChange(SCOPES.filter((one) => (one === scope ? on : value.includes(one))))}
        >
          <span>{SCOPE_WORDS[scope]}</span>
        </Check>
      ))}
    </fieldset>
  );
}
