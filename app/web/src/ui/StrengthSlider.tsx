import type { Poles } from "../core/concepts";
import { signed } from "../maths/scales";
import type { StrengthZones } from "../maths/strength";
import { NumberField } from "./fields";

interface Props {
  /** The vector. */
  name: string;
  poles: Poles;
  value: number;
  low: number;
  high: number;
  negative: StrengthZones;
  positive: StrengthZones;
  onChange: (value: number) => void;
  /** Called once the slider is released, or a number was typed. */
  onEnd: () => void;
}

/** A dial between the two poles of a vector, with its number. The track shows on both sides where strengths work. */
export function StrengthSlider({ name, poles, value, low, high, negative, positive, onChange, onEnd }: Props) {
  const at = (strength: number) => `${(100 * (strength - low)) / (high - low)}%`;
  const span = (from: number, to: number) => ({ left: at(from), right: `calc(100% - ${at(to)})` });
  const pole = value === 0 ? "off" : value < 0 ? poles.negative : poles.positive;
  return (
    <div class="strength">
      <div class="row between small poles" aria-hidden="true">
        <span class="minus">{poles.negative}</span>
        <span class="plus">{poles.positive}</span>
      </div>
      <div class="track">
        <div class="zones" style={{ "--zero": at(0) }} aria-hidden="true">
          <div class="zone works" style={span(-negative.high, -negative.low)} />
          <div class="zone works" style={span(positive.low, positive.high)} />
          <div class="zone zero" style={{ left: at(0) }} />
        </div>
        <input
          type="range"
          aria-label={`Dial of ${name}`}
          aria-valuetext={`${signed(value)}, ${pole}`}
          min={low}
          max={high}
          step={high - low > 20 ? 0.5 : 0.05}
          value={value}
          onInput={(event) => onChange(event.currentTarget.valueAsNumber)}
          onChange={onEnd}
          onDblClick={() => onChange(0)}
        />
      </div>
      <NumberField
        label={`Strength of ${name}`}
        hidden
        min={-1000}
        max={1000}
        step={0.05}
        value={Number(value.toFixed(4))}
        onChange={onChange}
        onEnd={onEnd}
      />
    </div>
  );
}
