import { useId, useState } from "preact/hooks";
import { type Bounds, numberIn, problemOf } from "./typedNumber";

interface Props extends Bounds {
  label: string;
  value: number | null;
  /** Whether it may be left empty, which gives null. */
  optional?: boolean;
  /** Shown while it is empty: what holds then. */
  placeholder?: string;
  onChange: (value: number | null) => void;
}

interface Typed {
  text: string;
  /** The value that holds since this was typed. */
  value: number | null;
}

/**
 * A labelled number. What is typed stays on the screen as it was typed until the value changes elsewhere, so that "0.0" can become
 * "0.05". What is not allowed is marked and not taken; the field says then which value holds.
 */
export function NumberInput({ label, value, optional = false, placeholder, onChange, ...bounds }: Props) {
  const id = useId();
  const [typed, setTyped] = useState<Typed | null>(null);
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
        <span>{label}</span>
        <input
          type="number"
          value={current?.text ?? String(value ?? "")}
          {...bounds}
          {...(placeholder === undefined ? {} : { placeholder })}
          {...(problem === null ? {} : { "aria-invalid": true, "aria-describedby": id })}
          onInput={(event) => take(event.currentTarget)}
          onBlur={() => {
            if (problem === null) setTyped(null); // what was not finished gives way to the value that holds
          }}
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
