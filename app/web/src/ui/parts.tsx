import { signal } from "@preact/signals";
import type { ComponentChildren, Ref } from "preact";
import { useEffect, useId, useLayoutEffect, useRef, useState } from "preact/hooks";
import { isAbort, isRefusal, messageOf } from "../api/client";
import type { Query } from "../core/query";
import { magnitude, signed } from "../maths/scales";
import { duration } from "../maths/text";

interface ButtonProps {
  /** What it says; children take its place where that is more than a text. */
  label?: string;
  /** What follows the label for those who hear the buttons of the page one by one. */
  hidden?: string;
  disabled?: boolean;
  /** Its look: primary, danger, quiet or small, and what the styles of its place know. */
  kind?: string;
  submit?: boolean;
  /** Whether it is on; absent where it is no switch. */
  pressed?: boolean;
  title?: string;
  buttonRef?: Ref<HTMLButtonElement>;
  onClick?: (event: MouseEvent) => unknown;
  children?: ComponentChildren;
}

/** A button that keeps the focus while it is disabled: it has `aria-disabled` and ignores clicks, since an element with the attribute
 * `disabled` loses the focus, and with it the place of keyboards and screen readers. A key that is held down clicks it once. */
export function Button({ label, hidden, disabled, submit, buttonRef, onClick, children, ...rest }: ButtonProps) {
  const { kind, pressed, title } = rest;
  return (
    <button
      type={submit ? "submit" : "button"}
      class={kind}
      aria-disabled={disabled || undefined}
      aria-pressed={pressed}
      title={title || undefined}
      ref={buttonRef ?? null}
      // Enter in a field of its form sends nothing either
      onClick={(event) => (disabled ? event.preventDefault() : void onClick?.(event))}
      onKeyDown={(event) => event.repeat && event.key === "Enter" && event.preventDefault()}
    >
      {children ?? label}
      {hidden && <span class="visually-hidden">{hidden}</span>}
    </button>
  );
}

/** A small button that removes something; `label` is for those who do not see the sign. */
export const Remove = ({ label, onClick }: { label: string; onClick: () => void }) => (
  <Button kind="quiet" hidden={label} onClick={onClick}>
    <span aria-hidden="true">✕</span>
  </Button>
);

interface AskProps extends Pick<ButtonProps, "label" | "kind" | "disabled"> {
  query: Pick<Query<unknown>, "busy" | "stop">;
  /** What it says while it waits for the answer. */
  waiting: string;
  onAsk: () => unknown;
}

/** The button that asks the server something, and while it waits for the answer one that gives it up. */
export function Ask({ query, label, waiting, disabled, onAsk, ...kind }: AskProps) {
  const busy = query.busy.value;
  return (
    <>
      <Button label={(busy ? waiting : label) ?? ""} disabled={busy || disabled === true} onClick={onAsk} {...kind} />
      {busy && <Button label="Stop" onClick={() => query.stop()} />}
    </>
  );
}

/** The `ref` of a control that takes the focus when it appears, because it takes the place of the one that was pressed. */
export const takeFocus = (element: HTMLElement | null): void => element?.focus();

/** Moves the focus once the page has changed: the element that has it is about to go. */
export const focusNext = (selector: string): void =>
  void requestAnimationFrame(() => document.querySelector<HTMLElement>(selector)?.focus());

/** Returns what does something that takes the focused element away, and moves the focus. */
export const focusing = (selector: string, work: () => void) => () => {
  work();
  focusNext(selector);
};

type PanelProps = { title?: string; label?: string | undefined; children: ComponentChildren };

/** A part of a place, with the heading that names it unless it has another name. */
export const Panel = ({ title, label = title, children }: PanelProps) => (
  <section class="panel stack" aria-label={label}>
    {title && <h2>{title}</h2>}
    {children}
  </section>
);

export const More = ({ summary, children }: { summary: string; children: ComponentChildren }) => (
  <details class="more">
    <summary>{summary}</summary>
    <div class="stack">{children}</div>
  </details>
);

/** What a place says before there is anything to show: how it works, or what it is for. */
export const About = ({ title, texts, aside }: { title: string; texts: readonly string[]; aside?: string }) => (
  <Panel label="How it works" title={title}>
    <Each of={texts} row={(text) => <p key={text}>{text}</p>} />
    {aside && <p class="muted">{aside}</p>}
  </Panel>
);

type EachProps<T> = { of: readonly T[] | undefined; row: (one: T, index: number) => ComponentChildren };

/** What stands for each of several things; it has its key. */
export const Each = <T,>({ of, row }: EachProps<T>) => <>{of?.map(row)}</>;

interface ListProps<T> extends EachProps<T> {
  kind?: string;
  label?: string;
  /** Stands in its place where nothing is in it. */
  none?: string;
}

/** A list whose entries are list items. */
export const List = <T,>({ of, kind = "stack", label, none, row }: ListProps<T>) => (
  <>
    {none && of?.length === 0 && <p class="muted">{none}</p>}
    <ul class={kind} aria-label={label}>
      {of?.map(row)}
    </ul>
  </>
);

interface FormProps {
  label?: string;
  kind?: "stack" | "row" | "row keep";
  onSend: () => unknown;
  /** The words of the button that sends it, and whether it cannot be sent now; without words its fields have the button. */
  send?: string;
  disabled?: boolean;
  /** Why it was not done. */
  error?: unknown;
  children: ComponentChildren;
}

/** Fields that are sent together, without leaving the page. */
export function Form({ label, kind = "stack", onSend, send, disabled = false, error, children }: FormProps) {
  const submit = (event: Event) => {
    event.preventDefault();
    void onSend();
  };
  return (
    <form class={kind} aria-label={label} onSubmit={submit}>
      {children}
      {send && <Button label={send} submit disabled={disabled} />}
      <ErrorNote error={error} />
    </form>
  );
}

/** Shows a message that stays: an error, a notice, or plain information. */
export const Note = ({ kind, children }: { kind: "error" | "notice" | "plain"; children: ComponentChildren }) => (
  <div class={`note ${kind}`} role={kind === "error" ? "alert" : "note"}>
    {children}
  </div>
);

export const Warnings = ({ of = [] }: { of: readonly string[] | undefined }) =>
  of.map((warning) => (
    <Note key={warning} kind="notice">
      {warning}
    </Note>
  ));

export const ErrorNote = ({ error }: { error: unknown }) =>
  error == null || isAbort(error) ? null : <Note kind="error">{messageOf(error)}</Note>;

interface LoadNoteProps {
  /** The name of what is read, for those who hear the buttons of the page one by one. */
  what: string;
  query: Pick<Query<unknown>, "error" | "load">;
  again?: () => unknown;
}

/** Says why something could not be read, with a button that reads it again. A refused key is stated once for the place. */
export function LoadNote({ what, query, again = () => query.load() }: LoadNoteProps) {
  const error = query.error.value;
  if (error === null || isRefusal(error)) return null;
  return (
    <div class="stack">
      <ErrorNote error={error} />
      <Button label="Read it again" hidden={`: ${what}`} onClick={() => void again()} />
    </div>
  );
}

/** A moment in the words of the reader's language, with its day: what is shown may be of another one. */
export const shortTime = (text: string): string =>
  new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

type DialogProps = { title: string; onClose: () => void; wide?: boolean; children: ComponentChildren };

/** Shows a modal window with a title; Esc and the button close it. However it ends, the focus goes back to what had it before. */
export function Dialog({ title, onClose, wide = false, children }: DialogProps) {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useLayoutEffect(() => {
    const dialog = ref.current;
    dialog?.showModal();
    return () => dialog?.close(); // while it is on the page: one that is only taken away gives the focus to nothing
  }, []);
  return (
    <dialog ref={ref} class={wide ? "wide" : ""} aria-labelledby={id} onClose={onClose}>
      <div class="stack">
        <div class="row between">
          <h2 id={id}>{title}</h2>
          <Button label="Close" kind="quiet" onClick={() => ref.current?.close()} />
        </div>
        {children}
      </div>
    </dialog>
  );
}

/** One coloured cell of a table: its text, its colour from 0 to 1, and what is said of it. */
export type Shaded = { text: string; look: "amount" | "above" | "below"; share: number; title?: string };

/** A number with a sign as a coloured cell, on a scale where `full` is full colour. */
export const scored = (value: number | null, full = 1, digits = 2): Shaded => ({
  text: signed(value, digits),
  look: (value ?? 0) < 0 ? "below" : "above",
  share: magnitude(value ?? 0, full),
});

interface TableProps {
  /** What it has, for those who hear it. */
  label: string;
  kind?: string;
  /** A list, or a heat map: a table of coloured cells with texts. */
  look?: "list" | "matrix";
  head: readonly string[];
  /** The cells of each row; the first one names it. */
  rows: readonly (readonly (ComponentChildren | Shaded)[])[];
}

/** A table in a box that scrolls. A row whose other cells are all alike is muted. */
export const Table = ({ label, kind = "", look = "list", head, rows }: TableProps) => (
  <Scroll label={label} kind={look === "matrix" ? kind : ""}>
    <table class={look === "matrix" ? look : `list ${kind}`}>
      <thead>
        <tr>{head.map((title, index) => (title === "" ? <td key={index} /> : <th key={index}>{title}</th>))}</tr>
      </thead>
      <tbody>
        {rows.map(([name, ...cells], index) => (
          <tr key={index} class={cells.length === 2 && cells[0] === cells[1] ? "muted" : ""}>
            <th scope="row" class={numeric(name)}>
              {name as ComponentChildren}
            </th>
            <Each of={cells} row={(cell, column) => <Cell key={column} cell={cell} />} />
          </tr>
        ))}
      </tbody>
    </table>
  </Scroll>
);

const numeric = (cell: unknown): string => (typeof cell === "number" ? "number" : "");

function Cell({ cell }: { cell: ComponentChildren | Shaded }) {
  if (typeof cell !== "object" || cell === null || !("share" in cell)) return <td class={numeric(cell)}>{cell}</td>;
  return (
    <td class={cell.look} title={cell.title} style={{ "--m": cell.share }}>
      {cell.text}
    </td>
  );
}

type ScrollProps = { label: string; kind?: string; children: ComponentChildren };

/** A box that scrolls, which is reachable by keyboard. */
export const Scroll = ({ label, kind = "", children }: ScrollProps) => (
  // biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard
  <div class={`scroll ${kind}`} tabIndex={0} role="region" aria-label={label}>
    {children}
  </div>
);

export const Facts = ({ of }: { of: readonly (readonly [string, ComponentChildren])[] }) => (
  <dl class="provenance">
    {of.map(([name, value]) => (
      <div key={name}>
        <dt>{name}</dt>
        <dd>{value}</dd>
      </div>
    ))}
  </dl>
);

interface ProgressProps extends Step {
  /** Seconds that it still takes, if that is known. */
  left?: number | null;
  onStop?: () => void;
}

/** Shows how far a long piece of work has come, with a way to stop it. Screen readers read out milestones only. */
export function Progress({ message, done, total, left = null, onStop }: ProgressProps) {
  const [milestones] = useState(() => new Milestones());
  useEffect(() => {
    const spoken = milestones.next({ message, done, total }, performance.now());
    if (spoken !== null) announce(spoken);
  }, [message, done, total]);
  return (
    <div class="progress">
      <div class="row between">
        <span>{message || "Working"}</span>
        <span class="row">
          {total > 0 && (
            <span class="number small">
              {done} / {total}
              {left !== null && `, ${duration(left)} left`}
            </span>
          )}
          {onStop && <Button label="Stop" onClick={onStop} />}
        </span>
      </div>
      <ProgressBar label={message || "Progress"} done={done} total={total} />
    </div>
  );
}

export const ProgressBar = ({ label, done = 0, total = 0 }: { label: string; done?: number; total?: number }) => (
  <progress aria-label={label} {...(total > 0 && { value: done, max: total })} />
);

/** What screen readers read out. One element of the frame holds it: what is there before it changes is read out reliably. */
export const announcement = signal("");

/** Has screen readers read something out, also when they have just read out the same. */
export function announce(text: string): void {
  announcement.value = announcement.peek() === text ? `${text}\u00a0` : text;
}

/** Hands on the size of an element in CSS pixels, at first and whenever it changes. */
export function useSize(of: () => HTMLElement | null | undefined, take: (width: number, height: number) => void) {
  const latest = useRef(take);
  latest.current = take;
  useEffect(() => {
    const element = of();
    if (!element) return;
    const observer = new ResizeObserver(() => latest.current(element.clientWidth, element.clientHeight));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
}

/** What has just happened, shown for a moment where a person may be looking elsewhere. */
export const toast = signal("");
const TOAST_MS = 6000;

/** Says that something has happened, to all who see the page and to those who hear it. */
export function notify(text: string): void {
  announce(text);
  toast.value = text;
  setTimeout(() => {
    if (toast.peek() === text) toast.value = "";
  }, TOAST_MS);
}

export type Step = { message: string; done: number; total: number };

const LEAST_MS = 5000;
const QUARTERS = 4;

/** Chooses what is read out of a long piece of work: its begin, and of all steps after it a new phase or quarter, each a while after another. */
export class Milestones {
  private last: { message: string; quarter: number; at: number } | null = null;

  /** Returns what to read out of a step; null where it is too soon, or where nothing has changed much. */
  next({ message, done, total }: Step, at: number): string | null {
    const quarter = total > 0 ? Math.floor((QUARTERS * done) / total) : 0;
    const same = this.last?.message === message && this.last.quarter === quarter;
    if (same || (this.last && at - this.last.at < LEAST_MS)) return null;
    this.last = { message, quarter, at };
    return total > 0 ? `${message || "Working"}, ${done} of ${total}` : message || "Working";
  }
}

/** How a word is coloured: by a score with a sign, by an amount, or because it has changed. `full` has the full colour. */
export type Mark = { score?: number | null; amount?: number | null; full?: number; changed?: boolean };

/** The class and the style of a coloured word. */
export function lookOf({ score, amount, full = 1, changed }: Mark): { class: string; style?: Record<string, number> } {
  if (changed) return { class: "token changed" };
  const value = score ?? amount;
  if (value === null || value === undefined) return { class: "token" };
  const kind = score == null ? "amount" : value < 0 ? "below" : "above";
  const share = magnitude(value, full);
  return { class: `token ${kind}`, ...(share > 0 ? { style: { "--m": share } } : {}) };
}

export function ScoreLegend({ below, middle, above }: { below: string; middle: string; above: string }) {
  const end = (kind: string, words: string) => (
    <span class={kind} style={{ "--m": 1 }}>
      {words}
    </span>
  );
  return (
    <span class="row small legend">
      {end("below", below)}
      <span>{middle}</span>
      {end("above", above)}
    </span>
  );
}

type ScoreProps = { score: number | null | undefined; full: number; digits?: number };

/** A score as a small dial: how far it lies from the middle, to which side, and its number. */
export function ScoreDial({ score, full, digits }: ScoreProps) {
  const share = magnitude(score ?? 0, full) * 50;
  const minus = (score ?? 0) < 0;
  const style = { width: `${share}%`, left: minus ? `${50 - share}%` : "50%" };
  return (
    <>
      <span class="deviation" aria-hidden="true">
        <span class={minus ? "minus" : "plus"} style={style} />
      </span>
      <span class="number small">{signed(score, digits)}</span>
    </>
  );
}
