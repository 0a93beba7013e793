import type { RefObject } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { domainOf, linear } from "../maths/scales";

export interface Series {
  label: string;
  values: readonly (number | null)[];
  /** strong: the measured curve; faint: what it is held against; low and high: the bounds of its interval. */
  look: "strong" | "faint" | "low" | "high";
}

interface Props {
  title: string;
  x: readonly number[];
  xLabel: string;
  series: readonly Series[];
  /** One sentence about a point, shown under the chart. */
  describe: (index: number) => string;
  /** A vertical line, such as the layer that is shown. */
  mark?: number | null;
  /** A shaded part of the x axis, such as a recommended range. */
  ranges?: readonly (readonly [number, number])[];
  yRange?: readonly [number, number];
  height?: number;
  onPick?: (index: number) => void;
}

const [LEFT, RIGHT, TOP, BOTTOM] = [46, 10, 8, 36];

/** Follows the width of an element, in pixels. */
function useWidth(): [RefObject<HTMLDivElement | null>, number] {
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(320);
  useEffect(() => {
    const parent = box.current;
    if (!parent) return;
    const observer = new ResizeObserver(() => setWidth(Math.max(parent.clientWidth, 160)));
    observer.observe(parent);
    return () => observer.disconnect();
  }, []);
  return [box, width];
}

/** Draws curves over one axis, with an interval band and marks. */
export function Chart(props: Props) {
  const { title, x, xLabel, series, describe, mark = null, ranges = [], yRange, height = 180, onPick } = props;
  const [box, width] = useWidth();
  const [hovered, setHovered] = useState<number | null>(null);
  const known = series.flatMap(({ values }) => values.filter((one): one is number => one !== null));
  const [xDomain, yDomain] = [domainOf(x, 0.02), yRange ?? domainOf(known)];
  const [right, down] = [linear(xDomain, [LEFT, width - RIGHT]), linear(yDomain, [height - BOTTOM, TOP])];
  const place = (values: Series["values"]) => (index: number) => `${right(x[index]!)},${down(values[index]!)}`;
  const line = (values: Series["values"]) => runsOf(values).map((run) => `M${run.map(place(values)).join("L")}${run.length === 1 ? "h0" : ""}`); // biome-ignore format: one line
  const nearest = ({ offsetX }: { offsetX: number }) =>
    x.reduce((best, value, index) => (Math.abs(right(value) - offsetX) < Math.abs(right(x[best]!) - offsetX) ? index : best), 0); // biome-ignore format: one line
  const [low = [], high = []] = ["low", "high"].map((look) => series.find((one) => one.look === look)?.values);
  const band = runsOf(low.map((one, index) => (high[index] == null ? null : one))).map((run) => `M${[...run.map(place(low)), ...run.toReversed().map(place(high))].join("L")}Z`); // biome-ignore format: one line
  const clip = useId();
  const shown = hovered !== null && hovered < x.length ? hovered : null; // the pointer may lie where points were before
  const whole = x.every(Number.isInteger);
  return (
    <figure class="chart">
      <figcaption class="small">{title}</figcaption>
      <div ref={box} style={{ height: `${height}px` }}>
        <svg
          width={width}
          height={height}
          role="img"
          aria-label={`${title}. ${summary(x.length, describe)}`}
          onPointerMove={(event) => x.length > 0 && setHovered(nearest(event))}
          onPointerLeave={() => setHovered(null)}
          onPointerUp={(event) => x.length > 0 && onPick?.(nearest(event))}
        >
          {ranges.map(([from, to]) => (
            <rect
              key={from}
              class="range"
              clip-path={`url(#${clip})`}
              x={(right(from) + right(to)) / 2 - half(from, to, right)}
              y={TOP}
              width={2 * half(from, to, right)}
              height={height - BOTTOM - TOP}
            />
          ))}
          {ticksOf(xDomain, Math.max(2, width / 70), whole).map((tick) => (
            <g key={tick} class="tick">
              <line x1={right(tick)} x2={right(tick)} y1={TOP} y2={height - BOTTOM} />
              <text x={right(tick)} y={height - BOTTOM + 14} text-anchor="middle">
                {tickText(tick)}
              </text>
            </g>
          ))}
          {ticksOf(yDomain, height / 45).map((tick) => (
            <g key={tick} class="tick">
              <line x1={LEFT} x2={width - RIGHT} y1={down(tick)} y2={down(tick)} />
              <text x={LEFT - 6} y={down(tick) + 4} text-anchor="end">
                {tickText(tick)}
              </text>
            </g>
          ))}
          <text x={(LEFT + width - RIGHT) / 2} y={height - 4} text-anchor="middle">
            {xLabel}
          </text>
          <clipPath id={clip}>
            <rect x={LEFT} y={TOP - 2} width={width - LEFT - RIGHT} height={height - BOTTOM - TOP + 4} />
          </clipPath>
          <path class="band" clip-path={`url(#${clip})`} d={band.join("")} />
          {mark !== null && <line class="mark" x1={right(mark)} x2={right(mark)} y1={TOP} y2={height - BOTTOM} />}
          {series.map(({ label, look, values }) =>
            look === "low" || look === "high" ? null : (
              <path key={label} class={look} clip-path={`url(#${clip})`} d={line(values).join("")} />
            ),
          )}
          {shown !== null && (
            <line class="pointed" x1={right(x[shown]!)} x2={right(x[shown]!)} y1={TOP} y2={height - BOTTOM} />
          )}
        </svg>
      </div>
      <p class="hover" aria-hidden="true">
        {shown !== null && describe(shown)}
      </p>
    </figure>
  );
}

/** The indices of values that follow each other without a gap: a curve is not drawn over what is not known. */
function runsOf(values: Series["values"]): number[][] {
  const runs: number[][] = [];
  values.forEach((value, index) => {
    if (value === null) return;
    if (index > 0 && values[index - 1] !== null) runs.at(-1)!.push(index);
    else runs.push([index]);
  });
  return runs;
}

const SPOKEN = 8;

/** A few points in words, for readers who do not see the curve. */
function summary(points: number, describe: (index: number) => string): string {
  const step = Math.max(1, Math.ceil(points / SPOKEN));
  return Array.from({ length: Math.ceil(points / step) }, (_, index) => describe(index * step)).join("; ");
}

/** Half of the width of a shaded range; one that is a single strength is seen, too. */
function half(from: number, to: number, right: (x: number) => number): number {
  return Math.max(Math.abs(right(to) - right(from)), 4) / 2;
}

/** Returns round numbers within a domain, about as many as asked for; without fractions where the axis has none. */
export function ticksOf([low, high]: readonly [number, number], count: number, whole = false): number[] {
  if (!(high > low)) return [];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((one) => one * power >= rough) ?? 10) * power;
  const used = whole ? Math.max(1, Math.round(step)) : step;
  const first = Math.ceil(low / used - 1e-9);
  const last = Math.floor(high / used + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => Number(((first + index) * used).toPrecision(12))); // biome-ignore format: one line
}

function tickText(tick: number): string {
  return String(tick).replace("-", "−");
}
