import { useRef, useState } from "preact/hooks";
import { apiKey } from "../../api/key";
import type { Key } from "../../api/types";
import { copy } from "../../frame/ShareLink";
import { Button } from "../../ui/Button";
import { ErrorNote, Note, Warnings } from "../../ui/Note";
import { LoadNote } from "../LoadNote";
import { KeyForm } from "./KeyForm";
import { NoPermission } from "./Policy";
import { dismissKey, type FreshKey, fresh, keyActions, keys, refusal, revokeKey, rotateKey } from "./store";
import { mayNot } from "./words";

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
          <LoadNote what="API keys" loaded={keys} />
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
  const used = item.last_used_at ? `last used ${shortTime(item.last_used_at)}` : "never used";
  const ends = item.expires_at ? `, expires ${shortTime(item.expires_at)}` : "";
  return (
    <li class="key-row">
      <span>
        <strong>{item.name}</strong>{" "}
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
            <Button kind="danger" disabled={busy} onClick={() => void revokeKey(item.id, place)}>
              Revoke {item.name}
            </Button>
            {/* In the place of the button that asks, which has the focus. */}
            <Button disabled={false} onClick={() => setAsked(false)}>
              Keep it
            </Button>
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
      <ErrorNote error={keyActions.errorAt(place)} />
    </li>
  );
}

function shortTime(text: string): string {
  return new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
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
        <button type="button" onClick={() => void take()}>
          {COPY_WORDS[`${copied}`]}
        </button>
        {replaces && (
          <Button kind="danger" disabled={keyActions.busy.value} onClick={() => void revokeKey(replaces.id, place)}>
            Revoke the old one
          </Button>
        )}
        <button type="button" class="quiet" onClick={() => dismissKey(key.id)}>
          Done
        </button>
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
