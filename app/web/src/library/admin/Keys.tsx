import { useState } from "preact/hooks";
import { apiKey } from "../../api/key";
import type { Key } from "../../api/types";
import { ErrorNote, Note } from "../../ui/Note";
import { KeyForm } from "./KeyForm";
import { NoPermission } from "./Policy";
import { fresh, keys, keyTrouble, refusal, revokeKey, rotateKey } from "./store";
import { mayNot } from "./words";

/** The keys of the server: who has one, what each may not do, and how to make, replace and revoke them. */
export function Keys() {
  return (
    <section class="panel stack" aria-label="API keys">
      <h2>API keys</h2>
      {refusal.value ? (
        <NoPermission />
      ) : (
        <>
          {keys.value.length === 0 && (
            <p class="muted">
              {apiKey.value === null
                ? "None: everybody who reaches this server may do everything. The first key needs the scope admin; from then on every request needs a key."
                : "None in the database. Keys from the environment and from the key file are not listed."}
            </p>
          )}
          <ErrorNote error={keyTrouble.value} />
          {fresh.value && <FreshKey />}
          <ul class="stack">
            {keys.value.map((key) => (
              <KeyRow key={key.id} item={key} />
            ))}
          </ul>
          <KeyForm />
        </>
      )}
    </section>
  );
}

function KeyRow({ item }: { item: Key }) {
  const [asked, setAsked] = useState(false);
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
            <button type="button" class="danger" onClick={() => void revokeKey(item.id)}>
              Revoke {item.name}
            </button>
            <button type="button" onClick={() => setAsked(false)}>
              Keep it
            </button>
          </>
        ) : (
          <>
            <button type="button" onClick={() => void rotateKey(item)}>
              Rotate<span class="visually-hidden"> {item.name}</span>
            </button>
            <button type="button" class="quiet" onClick={() => setAsked(true)}>
              Revoke<span class="visually-hidden"> {item.name}</span>
            </button>
          </>
        )}
      </span>
    </li>
  );
}

function shortTime(text: string): string {
  return new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

function FreshKey() {
  const [copied, setCopied] = useState(false);
  if (!fresh.value) return null;
  const { key, replaces } = fresh.value;
  const copy = async () => {
    await navigator.clipboard.writeText(key.key);
    setCopied(true);
  };
  return (
    <Note kind="notice">
      <span>
        The key of {key.name}, shown this once: <code class="number">{key.key}</code>
      </span>
      {key.key === apiKey.value && <span>This tab uses it from now on.</span>}
      <span class="row">
        <button type="button" onClick={() => void copy()}>
          {copied ? "Copied" : "Copy the key"}
        </button>
        {replaces && (
          <button type="button" class="danger" onClick={() => void revokeKey(replaces.id)}>
            Revoke the old one
          </button>
        )}
        <button type="button" class="quiet" onClick={() => (fresh.value = null)}>
          Done
        </button>
      </span>
      {replaces && (
        <span class="small">The old key works until it is revoked: give the new one to its users first.</span>
      )}
    </Note>
  );
}
