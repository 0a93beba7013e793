import { NumberInput } from "./NumberInput";
import type { Bounds } from "./typedNumber";

interface Props extends Bounds {
  label: string;
  value: number;
  onChange: (value: number) => void;
}

/** A labelled number that always has a value. */
export function NumberField({ onChange, ...rest }: Props) {
  return <NumberInput {...rest} onChange={(value) => value !== null && onChange(value)} />;
}
