import { plain, signed } from "../maths/scales";
import type { StrengthZones } from "../maths/strength";

interface Props {
  label: string;
  value: number;
  end: number;
  negative: StrengthZones;
  positive: StrengthZones;
  onChange: (value: number) => void;
}

/** A signed slider. The track shows on both sides where strengths work and where text breaks. */
export function StrengthSlider({ label, value, end, negative, positive, onChange }: Props) {
  const at = (strength: number) => `${(100 * (strength + end)) / (2 * end)}%`;
  const span = (from: number, to: number) => ({ left: at(from), right: `calc(100% - ${at(to)})` });
  return (
    <div class="strength">
      <div class="track">
        <div class="zones" aria-hidden="true">
          <div class="zone works" style={span(-negative.high, -negative.low)} />
          <div class="zone works" style={span(positive.low, positive.high)} />
          <div class="zone beyond" style={span(-end, -negative.high)} />
          <div class="zone beyond" style={span(positive.high, end)} />
          <div class="zone zero" style={{ left: "50%" }} />
        </div>
        <input
          type="range"
          aria-label={label}
          aria-valuetext={signed(value)}
          min={-end}
          max={end}
          step={end > 10 ? 0.5 : 0.05}
          value={value}
          onInput={(event) => onChange(event.currentTarget.valueAsNumber)}
          onDblClick={() => onChange(0)}
        />
      </div>
      <div class="row between small muted number" aria-hidden="true">
        <span>−{plain(end, 1)}</span>
        <span>0</span>
        <span>+{plain(end, 1)}</span>
      </div>
    </div>
  );
}
