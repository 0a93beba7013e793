import type { Signal } from "@preact/signals";
import type { ComponentChildren, JSX } from "preact";
import { useId, useState } from "preact/hooks";
import { changing } from "../core/state";

interface TextProps extends Bound<string> {
  label: string;
  placeholder?: string;
}

type Typed = Pick<Input, "pattern" | "title" | "inputMode" | "size" | "aria-invalid">;
type LineProps = TextProps & Typed & { late?: boolean };

/** A text of one line, which is taken while it is typed, or `late`: once the field is left. */
export function TextField({ label, value, onChange, late, ...rest }: LineProps) {
  const { onInput } = typed(onChange);
  return (
    <label class="field">
      <span>{label}</span>
      <input type="text" autocomplete="off" value={value} {...(late ? { onChange: onInput } : { onInput })} {...rest} />
    </label>
  );
}

export const TextArea = ({ label, onChange, ...rest }: TextProps & { rows: number }) => (
  <label class="field">
    <span>{label}</span>
    <textarea dir="auto" {...typed(onChange)} {...rest} />
  </label>
);

/** A text of several lines whose label is for those who do not see what it belongs to. */
export const TextBox = ({ label, value, onChange, rows = 2, ...rest }: TextProps & { rows?: number; id?: string }) => (
  <textarea aria-label={label} rows={rows} dir="auto" value={value} {...typed(onChange)} {...rest} />
);

/** The handler of an input or a textarea whose text is taken as it is typed. */
export const typed = (onChange: (value: string) => void) => ({
  onInput: (event: { currentTarget: HTMLInputElement | HTMLTextAreaElement }) => onChange(event.currentTarget.value),
});

export const SearchField = ({ label, placeholder = label, value, onChange }: TextProps) => (
  <input type="search" aria-label={label} placeholder={placeholder} value={value} {...typed(onChange)} />
);

type Input = JSX.IntrinsicElements["input"];
type Slid = Pick<Input, "aria-label" | "aria-valuetext" | "min" | "max" | "step" | "onDblClick" | "onKeyDown">;
export type SliderProps = Slid & { kind?: string; value: number; onMove: (at: number) => void; onChange?: () => void };

/** A slider that says where it is moved; `onChange` is called once it is released. */
export function Slider({ kind, min = 0, onMove, ...rest }: SliderProps) {
  const move = (event: { currentTarget: HTMLInputElement }) => onMove(event.currentTarget.valueAsNumber);
  return <input type="range" class={kind} min={min} onInput={move} {...rest} />;
}

/** The handler of a slider on which an arrow key goes one step. */
export const stepped = (onStep: (step: number) => void) => ({
  onKeyDown: (event: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    onStep(step);
  },
});

export const Check = ({ value, onChange, children }: Bound<boolean> & { children: ComponentChildren }) => (
  <label class="row">
    <input type="checkbox" checked={value} onChange={(event) => onChange(event.currentTarget.checked)} />
    {children}
  </label>
);

type RadioProps = { group: string; on: boolean; disabled?: boolean; onChoose: () => void; children: ComponentChildren };

/** One of several choices in a list, with what it is. */
export const Radio = ({ group, on, disabled = false, onChoose, children }: RadioProps) => (
  <li>
    <label class={`row choice ${disabled ? "muted" : ""}`}>
      <input type="radio" name={group} disabled={disabled} checked={on} onChange={onChoose} />
      <span>{children}</span>
    </label>
  </li>
);

/** The words of each choice; a list where the choices are known only when the page runs. */
type Options<T extends string | number> = Readonly<Record<T, string>> | readonly (readonly [T, string])[];

interface ChoiceProps<T extends string | number> extends Bound<T> {
  label: string;
  options: Options<T>;
  /** Choices that cannot be made now. */
  disabled?: readonly T[];
}

/** A labelled choice of one out of a few. */
export const ChoiceField = <T extends string>({ label, value, options, disabled = [], onChange }: ChoiceProps<T>) => (
  <label class="field">
    <span>{label}</span>
    <select value={value} onChange={(event) => onChange(event.currentTarget.value as T)}>
      {listed(options).map(([key, words]) => (
        <option key={key} value={key} disabled={disabled.includes(key)}>
          {words}
        </option>
      ))}
    </select>
  </label>
);

/** Offers a few choices next to each other, of which one is on. */
export const Segments = <T extends string | number>({ label, options, value, onChange }: ChoiceProps<T>) => (
  <fieldset class="segments plain" aria-label={label}>
    {listed(options).map(([key, text]) => (
      <button key={key} type="button" aria-pressed={key === value} onClick={() => onChange(key)}>
        {text}
      </button>
    ))}
  </fieldset>
);

const listed = <T extends string | number>(options: Options<T>): readonly (readonly [T, string])[] =>
  (Array.isArray(options) ? options : Object.entries(options)) as readonly (readonly [T, string])[];

/** Returns names as the choices of a field. */
export const named = <T extends { readonly name: string }>(list: readonly T[] | null): [string, string][] =>
  (list ?? []).map(({ name }) => [name, name]);

interface NumberProps extends Bounds {
  label: string;
  hidden?: boolean;
  /** Shown while it is empty: what holds then. */
  placeholder?: string;
  /** Called once the field is left or Enter is pressed, after a change. */
  onEnd?: () => void;
}

export const NumberField = ({ onChange, ...rest }: NumberProps & Bound<number>) => (
  <NumberInput {...rest} optional={false} onChange={(value) => value !== null && onChange(value)} />
);

/** A labelled number that may be left empty, which gives null. */
export const OptionalNumber = (props: NumberProps & Bound<number | null>) => <NumberInput {...props} optional />;

/** A labelled number. What is typed stays on the screen as it was typed until the value changes elsewhere, so that "0.0" can become
 * "0.05". What is not allowed is marked and not taken; the field says then which value holds. */
function NumberInput(props: NumberProps & Bound<number | null> & { optional: boolean }) {
  const { label, hidden, value, optional, onChange, onEnd, placeholder, ...bounds } = props;
  const id = useId();
  const [typed, setTyped] = useState<{ text: string; value: number | null } | null>(null); // what was typed, and the value that holds since;
  const current = typed !== null && typed.value === value ? typed : null;
  if (typed !== null && current === null) setTyped(null);
  const take = (input: HTMLInputElement) => {
    const text = input.value;
    // A browser gives no text for what is no number yet, such as a minus sign.
    const next = text === "" ? (optional && !input.validity.badInput ? null : undefined) : numberIn(text, bounds);
    setTyped({ text, value: next === undefined ? value : next });
    if (next !== undefined && next !== value) onChange(next);
  };
  const problem = current === null ? null : problemOf(current.text, bounds);
  return (
    <div class="number-input">
      <label class="field">
        <span {...(hidden ? { class: "visually-hidden" } : {})}>{label}</span>
        <input
          type="number"
          value={current?.text ?? String(value ?? "")}
          {...bounds}
          {...(placeholder === undefined ? {} : { placeholder })}
          {...(problem === null ? {} : { "aria-invalid": true, "aria-describedby": id })}
          onInput={(event) => take(event.currentTarget)}
          onChange={() => problem === null && onEnd?.()}
          onBlur={() => problem === null && setTyped(null)} // what was not finished gives way to the value that holds
        />
      </label>
      {problem && (
        <span id={id} class="problem">
          {problem}
          {value !== null && ` ${value} is used.`}
        </span>
      )}
    </div>
  );
}

/** What a number field takes. With a step of 1 it takes whole numbers only. */
type Bounds = { min?: number; max?: number; step: number };

/** Returns the number that a text is; undefined where it is none, or one that is not allowed. */
export const numberIn = (text: string, bounds: Bounds): number | undefined =>
  text.trim() === "" || problemOf(text, bounds) !== null ? undefined : Number(text);

/** Says why a typed number is not taken; null where it is, and where nothing is typed. */
export function problemOf(text: string, { min = -Infinity, max = Infinity, step }: Bounds): string | null {
  const number = Number(text);
  const range = max === Infinity ? `at least ${min}` : min === -Infinity ? `at most ${max}` : `${min} to ${max}`;
  if (text.trim() === "") return null;
  if (!Number.isFinite(number)) return "It must be a number.";
  if (number < min || number > max) return `It must be ${range}.`;
  return step === 1 && !Number.isInteger(number) ? "It must be a whole number." : null;
}

interface FileProps {
  /** What it does, in words. */
  children: string;
  accept: string;
  /** Takes the file. What it throws goes to `onProblem`. */
  take: (file: File) => Promise<unknown>;
  /** Hears why a file was not taken; null once another one is chosen. */
  onProblem: (problem: unknown) => void;
}

/** Opens a file of the user's machine. The same file can be chosen again: it may have been corrected meanwhile. */
export function FileButton({ children, accept, take, onProblem }: FileProps) {
  const choose = (input: HTMLInputElement) => {
    const [chosen] = input.files ?? [];
    input.value = ""; // or the browser says nothing of the same file
    if (!chosen) return;
    onProblem(null);
    take(chosen).catch(onProblem);
  };
  return (
    <label class="button">
      {children}
      <input type="file" class="visually-hidden" accept={accept} onChange={(event) => choose(event.currentTarget)} />
    </label>
  );
}

/** A value and what changes it, as every field takes them. */
export interface Bound<T> {
  value: T;
  onChange: (value: T) => void;
}

export const of = <T,>(signal: Signal<T>): Bound<T> => ({
  value: signal.value,
  onChange: (value) => (signal.value = value),
});

/** Binds a choice whose empty one stands for none. */
export const optional = <T extends string>({ value, onChange }: Bound<T | null>): Bound<T | ""> => ({
  value: value ?? "",
  onChange: (next) => onChange(next || null),
});

/** Binds fields to the parts of an object. */
export const partsOf =
  <T extends object>(whole: T, change: (part: Partial<T>) => void) =>
  <K extends keyof T>(name: K): Bound<T[K]> => ({
    value: whole[name],
    onChange: (value) => change({ [name]: value } as unknown as Partial<T>),
  });

/** Binds fields to the parts of an object in a signal. */
export const partsIn = <T extends object>(whole: Signal<T>) => partsOf(whole.value, changing(whole));
