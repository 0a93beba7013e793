import { leastIndex, range, ticks } from "d3-array";
import { useId, useRef, useState } from "preact/hooks";
import { domainOf, linear } from "../maths/scales";
import { useSize } from "./parts";

type Values = readonly (number | null)[];

interface Props {
  title: string;
  x: readonly number[];
  xLabel: string;
  /** strong: the measured curve; faint: what it is held against; low and high: the bounds of its interval. */
  series: { strong: Values; faint?: Values; low?: Values; high?: Values };
  /** One sentence about a point, shown under the chart. */
  describe: (index: number) => string;
  /** A vertical line, such as the layer that is shown. */
  mark?: number | null;
  /** A shaded part of the x axis, such as a recommended range. */
  ranges?: readonly (readonly [number, number])[];
  yRange?: readonly [number, number];
  onPick?: (index: number) => void;
}

const HEIGHT = 180;
const [LEFT, RIGHT, TOP, BOTTOM] = [46, 10, 8, 36];

/** Draws curves over one axis, with an interval band and marks. */
export function Chart({ title, x, xLabel, series, describe, mark = null, ranges = [], yRange, onPick }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(320);
  useSize(
    () => box.current,
    (wide) => setWidth(Math.max(wide, 160)),
  );
  const [hovered, setHovered] = useState<number | null>(null);
  const known = Object.values(series).flatMap((values) => values.filter((one): one is number => one !== null));
  const [xDomain, yDomain] = [domainOf(x, 0.02), yRange ?? domainOf(known)];
  const [bottom, end] = [HEIGHT - BOTTOM, width - RIGHT];
  const [right, down] = [linear(xDomain, [LEFT, end]), linear(yDomain, [bottom, TOP])];
  const place = (values: Values) => (index: number) => `${right(x[index]!)},${down(values[index]!)}`;
  const line = (values: Values) => runsOf(values).map((run) => `M${run.map(place(values)).join("L")}${run.length === 1 ? "h0" : ""}`).join(""); // biome-ignore format: one line
  const nearest = ({ offsetX }: { offsetX: number }) => leastIndex(x, (one, other) => Math.abs(right(one) - offsetX) - Math.abs(right(other) - offsetX))!; // biome-ignore format: one line
  const { low = [], high = [] } = series;
  const band = runsOf(low.map((one, index) => (high[index] == null ? null : one))).map((run) => `M${[...run.map(place(low)), ...run.toReversed().map(place(high))].join("L")}Z`); // biome-ignore format: one line
  const spoken = range(0, x.length, Math.max(1, Math.ceil(x.length / SPOKEN)));
  const clip = `url(#${useId()})`;
  const shown = hovered !== null && hovered < x.length ? hovered : null; // the pointer may lie where points were before
  const vertical = (kind: string, at: number) => (
    <line class={kind} x1={right(at)} x2={right(at)} y1={TOP} y2={bottom} />
  );
  return (
    <figure class="chart">
      <figcaption class="small">{title}</figcaption>
      <div ref={box} style={{ height: `${HEIGHT}px` }}>
        <svg
          width={width}
          height={HEIGHT}
          role="img"
          aria-label={`${title}. ${spoken.map(describe).join("; ")}`}
          onPointerMove={(event) => x.length > 0 && setHovered(nearest(event))}
          onPointerLeave={() => setHovered(null)}
          onPointerUp={(event) => x.length > 0 && onPick?.(nearest(event))}
        >
          <clipPath id={clip.slice(5, -1)}>
            <rect x={LEFT} y={TOP - 2} width={end - LEFT} height={bottom - TOP + 4} />
          </clipPath>
          <g clip-path={clip}>
            {ranges.map(([from, to]) => {
              const wide = Math.max(Math.abs(right(to) - right(from)), 4); // one that is a single strength is seen, too
              const middle = (right(from) + right(to)) / 2;
              return <rect key={from} class="range" x={middle - wide / 2} y={TOP} width={wide} height={bottom - TOP} />;
            })}
          </g>
          {ticksOf(xDomain, Math.max(2, width / 70), x.every(Number.isInteger)).map((tick) => (
            <g key={tick} class="tick">
              {vertical("", tick)}
              <text x={right(tick)} y={bottom + 14} text-anchor="middle">
                {tickText(tick)}
              </text>
            </g>
          ))}
          {ticksOf(yDomain, HEIGHT / 45).map((tick) => (
            <g key={tick} class="tick">
              <line x1={LEFT} x2={end} y1={down(tick)} y2={down(tick)} />
              <text x={LEFT - 6} y={down(tick) + 4} text-anchor="end">
                {tickText(tick)}
              </text>
            </g>
          ))}
          <text x={(LEFT + end) / 2} y={HEIGHT - 4} text-anchor="middle">
            {xLabel}
          </text>
          <g clip-path={clip}>
            <path class="band" d={band.join("")} />
            {mark !== null && vertical("mark", mark)}
            {series.faint && <path class="faint" d={line(series.faint)} />}
            <path class="strong" d={line(series.strong)} />
          </g>
          {shown !== null && vertical("pointed", x[shown]!)}
        </svg>
      </div>
      <p class="hover" aria-hidden="true">
        {shown !== null && describe(shown)}
      </p>
    </figure>
  );
}

/** The indices of values that follow each other without a gap: a curve is not drawn over what is not known. */
function runsOf(values: Values): number[][] {
  const runs: number[][] = [];
  values.forEach((value, index) => {
    if (value === null) return;
    if (index > 0 && values[index - 1] !== null) runs.at(-1)!.push(index);
    else runs.push([index]);
  });
  return runs;
}

const SPOKEN = 8;

/** Returns round numbers within a domain, about as many as asked for; without fractions where the axis has none. */
export const ticksOf = ([low, high]: readonly [number, number], count: number, whole = false): number[] =>
  high > low ? ticks(low, high, whole ? Math.min(count, high - low) : count) : [];

const tickText = (tick: number): string => String(tick).replace("-", "−");

type Ends = readonly (number | null)[] | null | undefined;

/** The low and the high ends of intervals, as two curves. */
export const endsOf = (intervals: readonly Ends[]) => ({
  low: intervals.map((one) => one?.[0] ?? null),
  high: intervals.map((one) => one?.[1] ?? null),
});
