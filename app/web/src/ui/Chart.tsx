import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { useEffect, useRef, useState } from "preact/hooks";
import { colour, coloursChanged } from "../frame/theme";

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

/** Draws curves over one axis, with an interval band and marks. */
export function Chart(props: Props) {
  const { title, x, series, describe, height = 180, onPick } = props;
  const box = useRef<HTMLDivElement>(null);
  const [hovered, setHovered] = useState<number | null>(null);
  const colours = coloursChanged.value;
  const data = JSON.stringify([x, series, props.mark, props.ranges]);
  useEffect(() => {
    const parent = box.current;
    if (!parent || x.length === 0) return;
    const width = () => Math.max(parent.clientWidth, 160);
    const options = optionsFor(props, width(), height, setHovered);
    const plot = new uPlot(options, [[...x], ...series.map((one) => [...one.values])] as uPlot.AlignedData, parent);
    const pick = () => {
      if (onPick && plot.cursor.idx != null) onPick(plot.cursor.idx);
    };
    plot.over.addEventListener("click", pick);
    const observer = new ResizeObserver(() => plot.setSize({ width: width(), height }));
    observer.observe(parent);
    return () => {
      observer.disconnect();
      plot.destroy();
    };
  }, [data, colours, height]);
  const shown = hovered !== null && hovered < x.length ? hovered : null; // the pointer may lie where points were before
  return (
    <figure class="chart">
      <figcaption class="small">{title}</figcaption>
      <div
        ref={box}
        role="img"
        aria-label={`${title}. ${summary(x.length, describe)}`}
        style={{ minHeight: `${height}px` }}
      />
      <p class="hover" aria-hidden="true">
        {shown !== null && describe(shown)}
      </p>
    </figure>
  );
}

const SPOKEN = 8;

/** A few points in words, for readers who do not see the curve. */
function summary(points: number, describe: (index: number) => string): string {
  const step = Math.max(1, Math.ceil(points / SPOKEN));
  return Array.from({ length: Math.ceil(points / step) }, (_, index) => describe(index * step)).join("; ");
}

const FONT = "12px system-ui, sans-serif";
const WIDTHS = { strong: 2, faint: 1, low: 0, high: 0 } as const;

/** Distances between marks of layers, words and turns, which have no fractions. */
const WHOLE = { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] };

function optionsFor(
  props: Props,
  width: number,
  height: number,
  onHover: (index: number | null) => void,
): uPlot.Options {
  const [text, line, accent] = [colour("muted"), colour("line"), colour("accent")];
  const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line }, font: FONT, labelFont: FONT };
  return {
    width,
    height,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { time: false }, ...(props.yRange ? { y: { range: [...props.yRange] as [number, number] } } : {}) },
    axes: [
      { ...axis, label: props.xLabel, labelSize: 18, size: 34, ...(props.x.every(Number.isInteger) ? WHOLE : {}) },
      { ...axis, size: 48 },
    ],
    series: [{}, ...props.series.map((one) => curve(one, props.x.length, accent))],
    bands: bandsOf(props.series, withAlpha(accent, 0.2)),
    hooks: {
      setCursor: [(plot) => onHover(plot.cursor.idx ?? null)],
      drawClear: [(plot) => drawRanges(plot, props.ranges ?? [], withAlpha(accent, 0.14))],
      draw: [(plot) => drawMark(plot, props.mark ?? null, text)],
    },
  };
}

function curve(series: Series, points: number, accent: string): uPlot.Series {
  return {
    label: series.label,
    stroke: series.look === "faint" ? colour("line-strong") : accent,
    width: WIDTHS[series.look],
    points: { show: series.look === "strong" && points < 40, size: 6, fill: accent },
    spanGaps: true,
  };
}

/** The interval between the curves `low` and `high`, if there are both. */
function bandsOf(series: readonly Series[], fill: string): uPlot.Band[] {
  const low = series.findIndex((one) => one.look === "low");
  const high = series.findIndex((one) => one.look === "high");
  return low < 0 || high < 0 ? [] : [{ series: [high + 1, low + 1], fill }];
}

function withAlpha(rgb: string, alpha: number): string {
  return rgb.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);
}

/** Pixels of a shaded range at least: one that is a single strength is seen, too. */
const LEAST_RANGE = 4;

function drawRanges(plot: uPlot, ranges: readonly (readonly [number, number])[], fill: string): void {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.fillStyle = fill;
  for (const [from, to] of ranges) {
    const [left, right] = [plot.valToPos(from, "x", true), plot.valToPos(to, "x", true)];
    const width = Math.max(Math.abs(right - left), LEAST_RANGE * devicePixelRatio);
    ctx.fillRect((left + right - width) / 2, bbox.top, width, bbox.height);
  }
  ctx.restore();
}

function drawMark(plot: uPlot, mark: number | null, stroke: string): void {
  if (mark === null) return;
  const { ctx, bbox } = plot;
  const x = plot.valToPos(mark, "x", true);
  ctx.save();
  ctx.strokeStyle = stroke;
  ctx.lineWidth = 2 * devicePixelRatio;
  ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
  ctx.beginPath();
  ctx.moveTo(x, bbox.top);
  ctx.lineTo(x, bbox.top + bbox.height);
  ctx.stroke();
  ctx.restore();
}
