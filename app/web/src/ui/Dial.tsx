import type { Poles } from "../core/server";
import { clamp, signed } from "../maths/scales";
import { DIAL_END, FURTHER, STOPS, type StrengthZones, strengthAt } from "../maths/strength";
import { hints } from "../words.json";
import { NumberField, Slider, type SliderProps } from "./fields";
import { Button } from "./parts";

interface Props {
  name: string;
  poles: Poles;
  value: number;
  negative: StrengthZones;
  positive: StrengthZones;
  /** Whether the card shows that it steers to a side; null: that was not measured. */
  shown: { negative: boolean | null; positive: boolean | null };
  onChange: (value: number) => void;
  /** Called once the dial is released, a stop is pressed, or a number was typed. */
  onEnd: () => void;
}

/** A dial between the two poles of a vector: three named stops each way, a number, and one step beyond its end. */
export function Dial({ name, poles, value, negative, positive, shown, onChange, onEnd }: Props) {
  const side = value < 0 ? negative : positive;
  const share = value / side.high;
  const set = (strength: number) => {
    onChange(strength);
    onEnd();
  };
  const number = { value: Number(value.toFixed(4)), onChange, onEnd };
  const sides = { negative: shown.negative !== false, positive: shown.positive !== false };
  const further = Math.sign(value) * FURTHER * side.high;
  return (
    <div class="strength">
      <DialFace
        poles={poles}
        share={share}
        sides={sides}
        onPick={(at) => set(strengthAt(at, negative, positive))}
        onMove={(at) => onChange(strengthAt(at, negative, positive))}
        aria-label={`Dial of ${name}`}
        aria-valuetext={`${signed(value)}, ${value === 0 ? "off" : poleOf(poles, value)}`}
        step={0.05}
        onChange={onEnd}
        onDblClick={() => set(0)}
      />
      <div class="row between small">
        <NumberField label={`Strength of ${name}`} hidden min={-1000} max={1000} step={0.05} {...number} />
        {Math.abs(share) >= DIAL_END - 0.06 && Math.abs(value) < Math.abs(further) - 0.01 && (
          <Button label="Further" kind="small" onClick={() => set(Number(further.toFixed(2)))} />
        )}
        <span class={`basis ${side.measured ? "measured" : ""}`} title={hints.basis}>
          {side.measured ? "measured" : "estimated"}
        </span>
      </div>
    </div>
  );
}

type Words = Pick<Poles, "positive" | "negative">;

const poleOf = (poles: Words, value: number): string => (value < 0 ? poles.negative : poles.positive);

const PoleWords = ({ poles }: { poles: Words }) => (
  <div class="row between small poles" aria-hidden="true">
    <span class="minus">{poles.negative}</span>
    <span class="plus">{poles.positive}</span>
  </div>
);

/** A dial to look at: its sides are coloured as far as the vector was shown to steer there. */
export const DialView = ({ poles, shown }: Pick<Props, "poles" | "shown">) => (
  <div class="strength view">
    <PoleWords poles={poles} />
    <div class="zones" aria-hidden="true">
      {shown.negative && <div class="filled minus" style={{ left: "0%", right: "50%" }} />}
      {shown.positive && <div class="filled plus" style={{ left: "50%", right: "0%" }} />}
      <div class="zero" />
    </div>
  </div>
);

interface FaceProps extends Omit<SliderProps, "value" | "max"> {
  poles: Words;
  /** Where it stands, as a share of its side; so are those to which it is moved, and of a stop that is pressed. */
  share: number;
  /** The sides that have stops. */
  sides: { negative: boolean; positive: boolean };
  onPick: (share: number) => void;
}

/** The face of a dial: the words of its ends, the track that is filled from the middle, and the stops, of which its own is marked. */
export function DialFace({ poles, share, sides, onMove, onPick, ...rest }: FaceProps) {
  const bounded = clamp(share, -DIAL_END, DIAL_END);
  const at = (one: number) => 50 + (50 * one) / DIAL_END;
  const filled = { left: `${at(Math.min(0, bounded))}%`, right: `${100 - at(Math.max(0, bounded))}%` };
  const stops = [
    ...(sides.negative ? STOPS.map(([stop, word]) => [-stop, word] as const).reverse() : []),
    [0, "off"] as const,
    ...(sides.positive ? STOPS : []),
  ];
  return (
    <>
      <PoleWords poles={poles} />
      <div class="track">
        <div class="zones" aria-hidden="true">
          <div class={`filled ${share < 0 ? "minus" : "plus"}`} style={filled} />
          <div class="zero" />
        </div>
        <Slider min={-DIAL_END} max={DIAL_END} value={bounded} onMove={onMove} {...rest} />
      </div>
      <div class="stops">
        {stops.map(([stop, word]) => {
          const label = stop === 0 ? word : `${word}, ${poleOf(poles, stop)}`;
          return (
            <button
              key={stop}
              type="button"
              class="stop"
              style={{ left: `${at(stop)}%` }}
              title={label}
              aria-label={label}
              aria-pressed={Math.abs(share - stop) < 0.02}
              onClick={() => onPick(stop)}
            />
          );
        })}
      </div>
    </>
  );
}
