import type { ComponentChildren } from "preact";
import type { Poles } from "../core/vectors";
import { clamp, signed } from "../maths/scales";
import { DIAL_END, FURTHER, STOPS, type StrengthZones, strengthAt } from "../maths/strength";
import { NumberField } from "./fields";
import { Button } from "./parts";

interface Props {
  /** The vector. */
  name: string;
  poles: Poles;
  /** The strength. */
  value: number;
  negative: StrengthZones;
  positive: StrengthZones;
  /** Whether the card shows that it steers to a side; null: that was not measured. */
  shown: { negative: boolean | null; positive: boolean | null };
  onChange: (value: number) => void;
  /** Called once the dial is released, a stop is pressed, or a number was typed. */
  onEnd: () => void;
}

const BASIS = "Where the stops come from: measured answers, or the usual size of activations";

/** A dial between the two poles of a vector: three named stops each way, a number, and one step beyond its end. */
export function Dial({ name, poles, value, negative, positive, shown, onChange, onEnd }: Props) {
  const side = value < 0 ? negative : positive;
  const share = value / side.high;
  const pole = value === 0 ? "off" : value < 0 ? poles.negative : poles.positive;
  const set = (strength: number) => {
    onChange(strength);
    onEnd();
  };
  const sides = { negative: shown.negative !== false, positive: shown.positive !== false };
  const number = { value: Number(value.toFixed(4)), onChange, onEnd };
  const further = Math.sign(value) * FURTHER * side.high;
  return (
    <div class="strength">
      <PoleWords poles={poles} />
      <DialTrack share={share}>
        <input
          type="range"
          aria-label={`Dial of ${name}`}
          aria-valuetext={`${signed(value)}, ${pole}`}
          min={-DIAL_END}
          max={DIAL_END}
          step={0.05}
          value={clamp(share, -DIAL_END, DIAL_END)}
          onInput={(event) => onChange(strengthAt(event.currentTarget.valueAsNumber, negative, positive))}
          onChange={onEnd}
          onDblClick={() => set(0)}
        />
      </DialTrack>
      <DialStops
        share={share}
        sides={sides}
        label={(at, word) => `${word}${at === 0 ? "" : `, ${at < 0 ? poles.negative : poles.positive}`}`}
        onPick={(at) => set(strengthAt(at, negative, positive))}
      />
      <div class="row between small">
        <NumberField label={`Strength of ${name}`} hidden min={-1000} max={1000} step={0.05} {...number} />
        {Math.abs(share) >= DIAL_END - 0.06 && Math.abs(value) < Math.abs(further) - 0.01 && (
          <Button label="Further" kind="small" onClick={() => set(Number(further.toFixed(2)))} />
        )}
        <span class={`basis ${side.measured ? "measured" : ""}`} title={BASIS}>
          {side.measured ? "measured" : "estimated"}
        </span>
      </div>
    </div>
  );
}

/** The words at the two ends of a dial. */
export function PoleWords({ poles }: { poles: Pick<Poles, "positive" | "negative"> }) {
  return (
    <div class="row between small poles" aria-hidden="true">
      <span class="minus">{poles.negative}</span>
      <span class="plus">{poles.positive}</span>
    </div>
  );
}

/** A dial to look at: its sides are coloured as far as the vector was shown to steer there. */
export function DialView({ poles, shown }: Pick<Props, "poles" | "shown">) {
  const side = (name: "negative" | "positive", left: number) =>
    shown[name] && (
      <div class={`filled ${left ? "plus" : "minus"}`} style={{ left: `${left}%`, right: `${50 - left}%` }} />
    );
  return (
    <div class="strength view">
      <PoleWords poles={poles} />
      <div class="zones" aria-hidden="true">
        {side("negative", 0)}
        {side("positive", 50)}
        <div class="zero" />
      </div>
    </div>
  );
}

/** The coloured track, filled from the middle to a share of it. */
export function DialTrack({ share, children }: { share: number; children: ComponentChildren }) {
  const at = (one: number) => 50 + (50 * clamp(one, -DIAL_END, DIAL_END)) / DIAL_END;
  const [left, right] = [Math.min(at(0), at(share)), Math.max(at(0), at(share))];
  return (
    <div class="track">
      <div class="zones" aria-hidden="true">
        <div class={`filled ${share < 0 ? "minus" : "plus"}`} style={{ left: `${left}%`, right: `${100 - right}%` }} />
        <div class="zero" />
      </div>
      {children}
    </div>
  );
}

interface StopsProps {
  share: number;
  /** The sides that have stops. */
  sides: { negative: boolean; positive: boolean };
  label: (at: number, word: string) => string;
  onPick: (at: number) => void;
}

/** The stops under a dial. The one it stands at is marked. */
export function DialStops({ share, sides, label, onPick }: StopsProps) {
  const all = [
    ...(sides.negative ? [...STOPS].reverse().map(([at, word]) => [-at, word] as const) : []),
    [0, "off"] as const,
    ...(sides.positive ? STOPS : []),
  ];
  return (
    <div class="stops">
      {all.map(([at, word]) => (
        <button
          key={at}
          type="button"
          class="stop"
          style={{ left: `${50 + (50 * at) / DIAL_END}%` }}
          title={label(at, word)}
          aria-label={label(at, word)}
          aria-pressed={Math.abs(share - at) < 0.02}
          onClick={() => onPick(at)}
        />
      ))}
    </div>
  );
}
