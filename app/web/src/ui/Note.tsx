import type { ComponentChildren } from "preact";
import { isAbort, messageOf } from "../api/errors";

interface Props {
  kind: "error" | "notice" | "plain";
  children: ComponentChildren;
}

/** Shows a message that stays: an error, a notice, or plain information. */
export function Note({ kind, children }: Props) {
  return (
    <div class={`note ${kind}`} role={kind === "error" ? "alert" : "note"}>
      {children}
    </div>
  );
}

/** Shows the warnings of an answer. */
export function Warnings({ of }: { of: readonly string[] | undefined }) {
  return (
    <>
      {of?.map((warning) => (
        <Note key={warning} kind="notice">
          {warning}
        </Note>
      ))}
    </>
  );
}

/** Shows what was thrown, unless the caller stopped it. */
export function ErrorNote({ error }: { error: unknown }) {
  if (error === null || error === undefined || isAbort(error)) return null;
  return <Note kind="error">{messageOf(error)}</Note>;
}

/** A moment in the words of the reader's language, with its day: what is shown may be of another one. */
export function shortTime(text: string): string {
  return new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
