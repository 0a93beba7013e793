import { mean, median, sum } from "d3-array";

type Point = readonly number[];
type Matrix = number[][];

const ITERATIONS = 150;
const RIDGE = 1e-12;
const MEDIAN_STEPS = 60;

/** Returns points around their geometric median with median distance one, so that layers of any norm fill the same picture
 * and one outlier cannot shrink the rest. Both commute with rotations. */
export function normalised(points: readonly Point[]): { points: number[][]; centre: number[]; size: number } {
  // Weiszfeld's iteration from the mean; the point whose distances to all others sum to the least.
  let centre = (points[0] ?? []).map((_, d) => mean(points, (p) => p[d]) ?? 0);
  for (let step = 0; step < MEDIAN_STEPS; step++) {
    const weights = points.map((p) => 1 / Math.max(Math.hypot(...p.map((x, d) => x - (centre[d] ?? 0))), 1e-9));
    centre = centre.map((_, d) => sum(points, (p, i) => weights[i]! * (p[d] ?? 0)) / sum(weights));
  }
  const centred = points.map((p) => p.map((x, d) => x - (centre[d] ?? 0)));
  const distances = centred.map((p) => Math.hypot(...p)).sort((a, b) => a - b);
  const size = distances[Math.floor(distances.length / 2)] || Math.max(...distances) || 1;
  return { points: centred.map((p) => p.map((x) => x / size)), centre, size };
}

/** Returns the orthogonal matrix R (a reflection is allowed) for which `from` R lies closest to `onto`.
 * It is the orthogonal polar factor of fromᵀ onto, found with the iteration X <- X (3 I - Xᵀ X) / 2 of Newton and Schulz, which needs no
 * inverse. The ridge keeps it defined where all points lie on one line. */
export function procrustes(from: readonly Point[], onto: readonly Point[]): Matrix {
  const axes = (from[0] ?? []).map((_, d) => d);
  const product = axes.map((r) => axes.map((c) => sum(from, (p, i) => (p[r] ?? 0) * (onto[i]?.[c] ?? 0))));
  const size = Math.hypot(...product.flat());
  let x: Matrix = product.map((row, r) =>
    row.map((v, c) => (size > 0 ? v / size : 0) + (r === c ? (size > 0 ? RIDGE : 1) : 0)),
  );
  for (let step = 0; step < ITERATIONS; step++) {
    const gram = axes.map((r) => axes.map((c) => (r === c ? 3 : 0) - sum(x, (row) => row[r]! * row[c]!)));
    x = x.map((row) => rotate(row, gram).map((v) => v / 2));
  }
  return x;
}

/** Returns the row vector times the matrix. */
export const rotate = (point: Point, matrix: Matrix): number[] =>
  matrix.map((_, c) => point.reduce((sum, v, r) => sum + v * (matrix[r]?.[c] ?? 0), 0));

/** One layer ready to draw: its points, and the map from the coordinates the server gave. */
export type AlignedLayer = { points: number[][]; place(point: Point): number[] };

/** Normalises every layer and rotates each onto the one before, so that points travel and do not jump. */
export function aligned(layers: readonly (readonly Point[])[]): AlignedLayer[] {
  const result: AlignedLayer[] = [];
  for (const raw of layers) {
    const { points, centre, size } = normalised(raw);
    const matrix = procrustes(points, result.at(-1)?.points ?? points);
    const place = (point: Point) => rotate(point.map((x, d) => (x - (centre[d] ?? 0)) / size), matrix); // biome-ignore format: one line
    result.push({ points: points.map((p) => rotate(p, matrix)), place });
  }
  return result;
}

/** Replaces the horizontal axis of every layer by the scores of a vector around their median, with one unit for all layers, so
 * that the two sides move apart where the model tells them apart. A layer without scores has all points in the middle. */
export const alongVector = (layers: readonly AlignedLayer[], scores: readonly (Scores | undefined)[]) =>
  layers.map((layer, index): AlignedLayer => {
    const list = scores[index] ?? [];
    const middle = median(list) ?? 0;
    const points = layer.points.map((point, i) => [(list[i] ?? middle) - middle, point[0] ?? 0]);
    return { points, place: (point) => point.map(() => 0) };
  });

/** Returns the points between two layers; `t` runs from 0 to 1. */
export const between = (a: readonly Point[], b: readonly Point[], t: number): number[][] =>
  a.map((p, i) => p.map((x, d) => x + ((b[i]?.[d] ?? x) - x) * t));

type Scores = readonly (number | null)[];

const STEPS = 300;

/** Returns a point per item in two dimensions whose distances follow `distance`: classical multidimensional scaling. */
export function scaledMap(distance: readonly (readonly number[])[]): [number, number][] {
  const squared = distance.map((row) => row.map((d) => d * d));
  const [means, total] = [squared.map((row) => mean(row)!), mean(squared.flat())!];
  const gram = squared.map((row, i) => row.map((d, j) => -0.5 * (d - means[i]! - means[j]! + total)));
  const first = leading(gram);
  const { value, vector } = first;
  const second = leading(gram.map((row, i) => row.map((g, j) => g - value * vector[i]! * vector[j]!)));
  const along = ({ value, vector }: Eigen, i: number) => vector[i]! * Math.sqrt(Math.max(value, 0));
  return distance.map((_, i) => [along(first, i), along(second, i)]);
}

type Eigen = { value: number; vector: number[] };

/** The largest eigenvalue of a symmetric matrix by power iteration on the matrix shifted to be positive definite. */
function leading(matrix: readonly (readonly number[])[]): Eigen {
  const shift = Math.max(...matrix.map((row) => sum(row, Math.abs)), 1e-12);
  const times = (v: readonly number[]) => matrix.map((row) => sum(row, (m, j) => m * v[j]!));
  let vector = matrix.map((_, i) => Math.sin(i + 1));
  for (let step = 0; step < STEPS; step++) {
    const next = times(vector).map((v, i) => v + shift * vector[i]!);
    const length = Math.hypot(...next) || 1;
    vector = next.map((v) => v / length);
  }
  return { value: sum(times(vector), (v, i) => v * vector[i]!), vector };
}

/** Returns the cosine of two vectors of the same length; null where one has no length. */
export function cosine(one: readonly number[], other: readonly number[]): number | null {
  const lengths = Math.hypot(...one) * Math.hypot(...other);
  return lengths > 0 ? sum(one, (value, index) => value * (other[index] ?? 0)) / lengths : null;
}

/** Returns at most `most` values spread evenly over a list, its ends included. */
export function spread<T>(list: readonly T[], most: number): T[] {
  if (list.length <= most) return [...list];
  const step = (list.length - 1) / Math.max(most - 1, 1);
  return Array.from({ length: most }, (_, index) => list[Math.round(index * step)] as T);
}

const LETTER = 6.6;
const LINE = 15;
const GAP = 12;
const DOT = 6;

export type Box = { left: number; right: number; top: number; bottom: number };
/** A place on the screen; of a label the middle of its text, and its base line. */
type Place = readonly [number, number];

/** Places a label near each point, above it where there is room, so that no label lies on another one or on a point. */
export function placeLabels(
  points: readonly Place[],
  words: readonly string[],
  width: number,
  height: number,
): Place[] {
  const taken: Box[] = points.map(([x, y]) => ({ left: x - DOT, right: x + DOT, top: y - DOT, bottom: y + DOT }));
  return points.map(([x, y], index) => {
    const half = ((words[index] ?? "").length * LETTER) / 2;
    const boxes = places(x, y, half).map(([left, base]) => {
      return { left: left - half, right: left + half, top: base - LINE + 3, bottom: base + 3 };
    });
    const inside = boxes.filter((box) => box.left > 0 && box.right < width && box.top > 0 && box.bottom < height);
    const box = inside.find((one) => taken.every((other) => !overlap(one, other))) ?? inside[0] ?? boxes[0]!;
    taken.push(box);
    return [(box.left + box.right) / 2, box.bottom - 3];
  });
}

/** The places of a label from the best to the farthest: above, below, right, left, then in growing circles. */
function places(x: number, y: number, half: number): Place[] {
  const near = [[0, -GAP], [0, GAP + LINE], [half + GAP, 4], [-half - GAP, 4]] as const; // biome-ignore format: one line
  const circles = Array.from({ length: 12 * 8 }, (_, index) => {
    const angle = (index % 12) * (Math.PI / 6);
    const far = GAP + LINE * (1 + Math.floor(index / 12));
    return [(far + half) * Math.cos(angle), far * Math.sin(angle)] as const;
  });
  return [...near, ...circles].map(([right, down]) => [x + right, y + down]);
}

export const overlap = (one: Box, other: Box): boolean =>
  one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom;
