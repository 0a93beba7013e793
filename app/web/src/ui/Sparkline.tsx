import { linear } from "../maths/scales";

interface Props {
  label: string;
  values: readonly (number | null)[];
  range: readonly [number, number];
  /** Index of the marked point. */
  mark: number | null;
}

const WIDTH = 160;
const HEIGHT = 36;

/** A small curve without axes. */
export function Sparkline({ label, values, range, mark }: Props) {
  const x = linear([0, Math.max(values.length - 1, 1)], [4, WIDTH - 4]);
  const y = linear(range, [HEIGHT - 4, 4]);
  const points = values.flatMap((value, index) => (value === null ? [] : [`${x(index)},${y(value)}`]));
  const marked = mark === null ? null : values[mark];
  return (
    <svg
      class="sparkline"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      preserveAspectRatio="xMinYMid"
      role="img"
      aria-label={label}
    >
      <line x1={4} x2={WIDTH - 4} y1={y(range[0])} y2={y(range[0])} class="base" />
      <polyline points={points.join(" ")} />
      {mark !== null && typeof marked === "number" && <circle cx={x(mark)} cy={y(marked)} r={3.5} />}
    </svg>
  );
}
