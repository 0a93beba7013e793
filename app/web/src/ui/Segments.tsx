interface Props<T extends string | number> {
  label: string;
  options: readonly (readonly [T, string])[];
  value: T;
  onChange: (value: T) => void;
}

/** Offers a few choices next to each other, of which one is on. */
export function Segments<T extends string | number>({ label, options, value, onChange }: Props<T>) {
  return (
    <fieldset class="segments plain" aria-label={label}>
      {options.map(([key, text]) => (
        <button key={key} type="button" aria-pressed={key === value} onClick={() => onChange(key)}>
          {text}
        </button>
      ))}
    </fieldset>
  );
}
