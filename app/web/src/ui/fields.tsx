import { NumberInput } from "./NumberInput";
import type { Bounds } from "./typedNumber";

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

interface NumberProps extends Bounds {
  label: string;
  value: number | null;
  /** Shown while it is empty: what holds then. */
  placeholder?: string;
  onChange: (value: number | null) => void;
}

/** A labelled number that may be left empty. */
export function OptionalNumber(props: NumberProps) {
  return <NumberInput {...props} optional />;
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
