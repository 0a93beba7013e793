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

interface LimitProps {
  label: string;
  value: string;
  step: number;
  onInput: (value: string) => void;
}

/** A labelled positive number that may be left empty: then there is no limit. */
export function LimitField({ label, value, step, onInput }: LimitProps) {
  return (
    <label class="field">
      <span>{label}</span>
      <input
        type="number"
        min={step}
        step={step}
        placeholder="no limit"
        value={value}
        onInput={(event) => onInput(event.currentTarget.value)}
      />
    </label>
  );
}

interface ChoiceProps<T extends string> {
  label: string;
  value: T;
  options: Readonly<Record<T, string>>;
  onChange: (value: T) => void;
}

/** A labelled choice of one out of a few. */
export function ChoiceField<T extends string>({ label, value, options, onChange }: ChoiceProps<T>) {
  return (
    <label class="field">
      <span>{label}</span>
      <select value={value} onChange={(event) => onChange(event.currentTarget.value as T)}>
        {(Object.entries(options) as [T, string][]).map(([key, words]) => (
          <option key={key} value={key}>
            {words}
          </option>
        ))}
      </select>
    </label>
  );
}
