import { computed } from "@preact/signals";
import { colour, coloursChanged } from "../frame/theme";
import { between } from "../maths/geometry";
import { fullScale, magnitude } from "../maths/scales";
import type { Scene } from "./draw";
import * as space from "./store";

const SHADES = 5;
export const labelNames = computed<string[]>(() => [...new Set(space.drawn.value?.set.labels ?? [])]);

/** Colours of labels: two labels are the two ends of the diverging scale, more have hues of their own. */
export const palette = computed<string[]>(() => {
  void coloursChanged.value;
  if (space.colourBy.value === "score") {
    const [below, above, middle] = [colour("below"), colour("above"), colour("middle")];
    const steps = Array.from({ length: SHADES }, (_, index) => (index + 1) / SHADES);
    const parts = (text: string) => (text.match(/[\d.]+/g) ?? []).slice(0, 3).map(Number);
    const mixed = (end: string, share: number) => {
      const to = parts(end);
      return `rgb(${parts(middle)
        .map((value, at) => Math.round(value + ((to[at] ?? value) - value) * share))
        .join(", ")})`;
    };
    return [middle, ...[below, above].flatMap((end) => steps.map((step) => mixed(end, step)))];
  }
  if (space.colourBy.value === "none" || !space.drawn.value?.set.labels) return [colour("accent")];
  if (labelNames.value.length === 2) return [colour("above"), colour("below")];
  return labelNames.value.map((_, index) => colour(`label-${(index % COLOURS) + 1}`));
});

const colourIndices = computed<number[]>(() => {
  const set = space.drawn.value?.set;
  if (!set) return [];
  if (space.colourBy.value === "score") {
    const list = space.shownScores.value;
    const full = fullScale(list.flatMap((one) => one ?? []), 1e-6); // biome-ignore format: one line
    return set.texts.map((_, index) => {
      const value = list[index];
      if (value === null || value === undefined) return 0;
      const step = Math.min(Math.floor(magnitude(value, full) * SHADES), SHADES - 1);
      return 1 + step + (value < 0 ? 0 : SHADES);
    });
  }
  const { labels } = set;
  return labels === null ? set.texts.map(() => 0) : labels.map((label) => labelNames.value.indexOf(label));
});

/** Everything on the canvas but what the pointer adds. */
export const scene = computed<Scene | null>(() => {
  const index = Math.floor(space.playhead.value);
  const here = space.layers.value[index];
  if (!here) return null;
  const next = space.layers.value[index + 1] ?? here;
  const t = space.playhead.value - index;
  const arrowsAt = Math.round(space.playhead.value);
  const chosen = space.picked.value;
  return {
    points: t === 0 ? here.points : between(here.points, next.points, t),
    colours: colourIndices.value,
    palette: palette.value,
    marks: space.colourBy.value === "label" ? labelNames.value.map((_, group) => markOf(group)) : [],
    arrows: (space.method.value === space.ALONG_VECTOR ? [] : (space.maps.value[arrowsAt]?.segments ?? [])).map(
      (segment) => ({ label: segment.vector, ...enlarged(arrowsAt, segment.start, segment.end) }),
    ),
    trail: chosen === null ? [] : space.layers.value.map((layer) => layer.points[chosen] ?? []),
    picked: chosen,
    hovered: null,
    lassoed: new Set(space.lassoed.value),
    lasso: [],
    labels: space.drawn.value?.set.texts ?? [],
    hulls: space.outlined.value && space.colourBy.value === "label",
    dense: space.dense.value,
  };
});

/** Places a segment in the aligned picture. Very short ones are drawn longer, since only their direction can be seen. */
function enlarged(at: number, start: readonly (number | null)[], end: readonly (number | null)[]) {
  const layer = space.layers.value[at];
  const place = (point: readonly (number | null)[]) => layer?.place(point.map((x) => x ?? 0)) ?? [];
  const [a, b] = [place(start), place(end)];
  const length = Math.hypot(...b.map((x, d) => x - (a[d] ?? 0)));
  const factor = length > 0 && length < 0.6 ? 0.6 / length : 1;
  const middle = a.map((x, d) => (x + (b[d] ?? x)) / 2);
  const grown = (point: readonly number[]) => point.map((x, d) => (middle[d] ?? 0) + (x - (middle[d] ?? 0)) * factor);
  return { start: grown(a), end: grown(b) };
}

/** Colours that groups of texts have; there is a custom property for each. */
export const COLOURS = 8;
/** A corner of a mark on the screen, in radii from its middle. */
export type Corner = readonly [number, number];

/** The outlines of marks: a circle, which has no corners, then a triangle, a square and a cross. All are about as large. */
const MARKS: readonly (readonly Corner[])[] = [
  [],
  [[0, -1.5], [1.35, 0.8], [-1.35, 0.8]],
  [[-1, -1], [1, -1], [1, 1], [-1, 1]],
  cross(0.55, 1.5),
]; // biome-ignore format: a mark a line

export const LOOKS = COLOURS * MARKS.length;
/** The outline of a group: groups that share a colour have different ones. */
export const markOf = (group: number): readonly Corner[] => MARKS[Math.floor(group / COLOURS) % MARKS.length] ?? [];

function cross(narrow: number, far: number): Corner[] {
  const arm = [[-narrow, -narrow], [-narrow, -far], [narrow, -far]] as const; // biome-ignore format: one line
  const turned = ([x, y]: Corner, turns: number): Corner => (turns === 0 ? [x, y] : turned([-y, x], turns - 1));
  return [0, 1, 2, 3].flatMap((turns) => arm.map((corner) => turned(corner, turns)));
}
