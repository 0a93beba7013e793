import { useState } from "preact/hooks";

interface TextProps {
  label: string;
  value: string;
  onInput: (value: string) => void;
  placeholder?: string;
  pattern?: string;
  title?: string;
}

/** A labelled line of text. */
export function TextField({ label, value, onInput, ...rest }: TextProps) {
  return (
    <label class="field">
      <span>{label}</span>
      <input
        type="text"
        autocomplete="off"
        value={value}
        onInput={(event) => onInput(event.currentTarget.value)}
        {...rest}
      />
    </label>
  );
}

interface NumberProps {
  label: string;
  value: number | null;
  step: number;
  min?: number;
  max?: number;
  /** Shown while it is empty: what holds then. */
  placeholder?: string;
  onChange: (value: number | null) => void;
}

/** A labelled number that may be left empty. What is typed stays as it was typed, so that "0.0" can become "0.05". */
export function OptionalNumber({ label, value, onChange, ...rest }: NumberProps) {
  const [text, setText] = useState("");
  return (
    <label class="field">
      <span>{label}</span>
      <input
        type="number"
        value={numberOf(text) === value ? text : String(value ?? "")}
        onInput={(event) => {
          setText(event.currentTarget.value);
          onChange(numberOf(event.currentTarget.value));
        }}
        {...rest}
      />
    </label>
  );
}

/** The number that a text is; null where it is none. */
function numberOf(text: string): number | null {
  const number = text.trim() === "" ? Number.NaN : Number(text);
  return Number.isFinite(number) ? number : null;
}

type Options<T extends string> = Readonly<Record<T, string>> | readonly (readonly [T, string])[];

interface ChoiceProps<T extends string> {
  label: string;
  value: T;
  /** The words of each choice; a list where the choices are known only when the page runs. */
  options: Options<T>;
  onChange: (value: T) => void;
}

/** A labelled choice of one out of a few. */
export function ChoiceField<T extends string>({ label, value, options, onChange }: ChoiceProps<T>) {
  const listed = (Array.isArray(options) ? options : Object.entries(options)) as readonly (readonly [T, string])[];
  return (
    <label class="field">
      <span>{label}</span>
      <select value={value} onChange={(event) => onChange(event.currentTarget.value as T)}>
        {listed.map(([key, words]) => (
          <option key={key} value={key}>
            {words}
          </option>
        ))}
      </select>
    </label>
  );
}
