interface Props {
  label: string;
  value: number;
  min: number;
  max: number;
  step: number;
  onChange: (value: number) => void;
}

/** A number with bounds; what is outside them is not taken. */
export function NumberField({ label, value, min, max, step, onChange }: Props) {
  return (
    <label class="field">
      <span>{label}</span>
      <input
        type="number"
        value={value}
        min={min}
        max={max}
        step={step}
        onInput={(event) => {
          const next = event.currentTarget.valueAsNumber;
          const whole = step >= 1 ? Math.round(next) : next;
          if (Number.isFinite(whole) && whole >= min && whole <= max) onChange(whole);
        }}
      />
    </label>
  );
}
