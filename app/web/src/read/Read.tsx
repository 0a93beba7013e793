import "../styles/read.css";
import { useEffect } from "preact/hooks";
import { open } from "../core/places";
import { vectors, vectorsAwaited } from "../core/vectors";
import { useActions } from "../frame/dialogs";
import { followLink, LinkProblem, ShareLink } from "../frame/ShareLink";
import { Button } from "../ui/Button";
import { of, Segments, typed } from "../ui/fields";
import { ErrorNote, Warnings } from "../ui/Note";
import { ReadingPanel, Standouts } from "./ReadingPanel";
import {
  busy,
  error,
  kind,
  messages,
  missing,
  read,
  reading,
  readState,
  restoreRead,
  setMessage,
  stop,
  text,
} from "./store";

const KINDS = { text: "Text", conversation: "Conversation" } as const;

/** Read: which concepts of the library stand out in a text, and where. */
export default function Read() {
  useEffect(() => useActions({ run: () => void read(), stop }), []);
  useEffect(() => followLink("read", restoreRead, readState), []);
  return (
    <>
      <LinkProblem />
      <WhatIsRead />
      <ErrorNote error={error.value} />
      <Warnings of={reading.value?.warnings} />
      {reading.value ? (
        <div class={`read ${busy.value ? "stale" : ""}`} aria-busy={busy.value}>
          <Standouts />
          <ReadingPanel />
        </div>
      ) : (
        <p class="muted">
          The model reads the text without steering. Each vector of the library is then held against the activations of
          every word: what stands out against neutral texts is listed first.
        </p>
      )}
    </>
  );
}

function WhatIsRead() {
  const noVectors = (vectors.value ?? []).length === 0;
  const { value, onChange } = of(text);
  return (
    <section class="panel stack" aria-label="What is read">
      <Segments label="Kind" options={KINDS} {...of(kind)} />
      {kind.value === "text" ? (
        <textarea aria-label="Text to read" rows={4} dir="auto" value={value} {...typed(onChange)} />
      ) : (
        <ConversationFields />
      )}
      <div class="row">
        <Button
          label={busy.value ? "Reading" : "Read it"}
          kind="primary"
          disabled={noVectors || missing.value !== null || busy.value}
          onClick={() => void read()}
        />
        {busy.value && <Button label="Stop" onClick={stop} />}
        <ShareLink view="read" state={readState} />
        {noVectors && <NothingToReadFor />}
        {!noVectors && missing.value && <span class="small muted">{missing.value}</span>}
      </div>
    </section>
  );
}

/** Says why nothing can be read, once that is known. */
function NothingToReadFor() {
  if (vectorsAwaited.value) return null;
  if (vectors.value === null)
    return <span class="muted">The vectors of the library are needed. Give a key that may see them.</span>;
  return (
    <>
      <span class="muted">The library is empty, so there is nothing to read for.</span>
      <Button label="Make a vector" onClick={() => open("make")} />
    </>
  );
}

function ConversationFields() {
  const remove = (index: number) => (messages.value = messages.value.filter((_, at) => at !== index));
  return (
    <div class="stack">
      {messages.value.map((message, index) => (
        <div key={index} class="message">
          <select
            aria-label={`Role of message ${index + 1}`}
            value={message.role}
            onChange={(event) => setMessage(index, { role: event.currentTarget.value as "user" | "assistant" })}
          >
            <option>user</option>
            <option>assistant</option>
            <option>system</option>
          </select>
          <textarea
            aria-label={`Message ${index + 1}`}
            rows={2}
            dir="auto"
            value={message.content}
            {...typed((content) => setMessage(index, { content }))}
          />
          <button type="button" class="quiet" onClick={() => remove(index)}>
            <span aria-hidden="true">✕</span>
            <span class="visually-hidden">Remove message {index + 1}</span>
          </button>
        </div>
      ))}
      <div class="row">
        <Button label="Add a message" onClick={addMessage} />
      </div>
    </div>
  );
}

function addMessage(): void {
  const role = messages.value.at(-1)?.role === "user" ? "assistant" : "user";
  messages.value = [...messages.value, { role, content: "" }];
}
