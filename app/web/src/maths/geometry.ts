export type Point = readonly number[];
export type Matrix = number[][];

const ITERATIONS = 60;
const RIDGE = 1e-12;
const MEDIAN_STEPS = 60;

/**
 * Returns points around their geometric median with median distance one, so that layers of any norm fill the same picture
 * and one outlier cannot shrink the rest. Both commute with rotations.
 */
export function normalised(points: readonly Point[]): { points: number[][]; centre: number[]; size: number } {
  const centre = geometricMedian(points);
  const centred = points.map((p) => p.map((x, d) => x - (centre[d] ?? 0)));
  const distances = centred.map((p) => Math.hypot(...p)).sort((a, b) => a - b);
  const size = distances[Math.floor(distances.length / 2)] || Math.max(...distances) || 1;
  return { points: centred.map((p) => p.map((x) => x / size)), centre, size };
}

/** Weiszfeld's iteration from the mean; the point whose distances to all others sum to the least. */
function geometricMedian(points: readonly Point[]): number[] {
  const dims = points[0]?.length ?? 0;
  let centre = Array.from({ length: dims }, (_, d) => mean(points.map((p) => p[d] ?? 0)));
  for (let step = 0; step < MEDIAN_STEPS; step++) {
    const weights = points.map((p) => 1 / Math.max(Math.hypot(...p.map((x, d) => x - (centre[d] ?? 0))), 1e-9));
    const total = weights.reduce((sum, w) => sum + w, 0);
    centre = centre.map((_, d) => points.reduce((sum, p, i) => sum + (weights[i] ?? 0) * (p[d] ?? 0), 0) / total);
  }
  return centre;
}

/**
 * Returns the orthogonal matrix R (a reflection is allowed) for which `from` R lies closest to `onto`.
 *
 * It is the orthogonal polar factor of fromᵀ onto, found with Newton's iteration X <- (X + X^-T) / 2.
 */
export function procrustes(from: readonly Point[], onto: readonly Point[]): Matrix {
  const dims = from[0]?.length ?? 0;
  let x: Matrix = zeros(dims);
  for (let i = 0; i < from.length; i++)
    for (let r = 0; r < dims; r++)
      for (let c = 0; c < dims; c++) x[r]![c]! += (from[i]?.[r] ?? 0) * (onto[i]?.[c] ?? 0);
  const size = Math.sqrt(x.flat().reduce((sum, v) => sum + v * v, 0));
  if (!(size > 0)) return identity(dims);
  // The ridge keeps the iteration defined where all points lie on one line.
  x = x.map((row, r) => row.map((v, c) => v / size + (r === c ? RIDGE : 0)));
  for (let step = 0; step < ITERATIONS; step++) {
    const inverse = inverted(x);
    if (inverse === null) return identity(dims);
    const next = x.map((row, r) => row.map((v, c) => (v + inverse[c]![r]!) / 2));
    const change = Math.max(...next.flatMap((row, r) => row.map((v, c) => Math.abs(v - x[r]![c]!))));
    x = next;
    if (change < 1e-12) break;
  }
  return x;
}

/** Returns the row vector times the matrix. */
export function rotate(point: Point, matrix: Matrix): number[] {
  return matrix.map((_, c) => point.reduce((sum, v, r) => sum + v * (matrix[r]?.[c] ?? 0), 0));
}

/** One layer ready to draw: its points, and the map from the coordinates the server gave. */
export interface AlignedLayer {
  points: number[][];
  place(point: Point): number[];
}

/** Normalises every layer and rotates each onto the one before, so that points travel and do not jump. */
export function aligned(layers: readonly (readonly Point[])[]): AlignedLayer[] {
  const result: AlignedLayer[] = [];
  for (const raw of layers) {
    const { points, centre, size } = normalised(raw);
    const before = result.at(-1)?.points;
    const matrix = before ? procrustes(points, before) : identity(points[0]?.length ?? 0);
    const place = (point: Point) =>
      rotate(
        point.map((x, d) => (x - (centre[d] ?? 0)) / size),
        matrix,
      );
    result.push({ points: points.map((p) => rotate(p, matrix)), place });
  }
  return result;
}

/**
 * Replaces the horizontal axis of every layer by the scores of a vector around their median, with one unit for all layers, so
 * that the two sides move apart where the model tells them apart. A layer without scores has all points in the middle.
 */
export function alongVector(
  layers: readonly AlignedLayer[],
  scores: readonly (readonly (number | null)[] | undefined)[],
): AlignedLayer[] {
  return layers.map((layer, index) => {
    const list = scores[index];
    const sorted = (list ?? []).filter((one): one is number => one !== null).sort((a, b) => a - b);
    const middle = sorted[Math.floor(sorted.length / 2)] ?? 0;
    const points = layer.points.map((point, i) => [(list?.[i] ?? middle) - middle, point[0] ?? 0]);
    return { points, place: (point) => point.map(() => 0) };
  });
}

/** Returns the points between two layers; `t` runs from 0 to 1. */
export function between(a: readonly Point[], b: readonly Point[], t: number): number[][] {
  return a.map((p, i) => p.map((x, d) => x + ((b[i]?.[d] ?? x) - x) * t));
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, v) => sum + v, 0) / values.length;
}

function zeros(n: number): Matrix {
  return Array.from({ length: n }, () => new Array<number>(n).fill(0));
}

function identity(n: number): Matrix {
  return zeros(n).map((row, i) => row.map((_, j) => (i === j ? 1 : 0)));
}

/** Gauss-Jordan with partial pivoting; null for a singular matrix. */
function inverted(matrix: Matrix): Matrix | null {
  const n = matrix.length;
  const work = matrix.map((row, i) => [...row, ...identity(n)[i]!]);
  for (let c = 0; c < n; c++) {
    let pivot = c;
    for (let r = c + 1; r < n; r++) if (Math.abs(work[r]![c]!) > Math.abs(work[pivot]![c]!)) pivot = r;
    [work[c], work[pivot]] = [work[pivot]!, work[c]!];
    const head = work[c]![c]!;
    if (Math.abs(head) < 1e-300) return null;
    work[c] = work[c]!.map((v) => v / head);
    for (let r = 0; r < n; r++) {
      const factor = work[r]![c]!;
      if (r !== c && factor !== 0) work[r] = work[r]!.map((v, k) => v - factor * work[c]![k]!);
    }
  }
  return work.map((row) => row.slice(n));
}

const STEPS = 300;

/** Returns a point per item in two dimensions whose distances follow `distance`: classical multidimensional scaling. */
export function scaledMap(distance: readonly (readonly number[])[]): [number, number][] {
  const n = distance.length;
  const squared = distance.map((row) => row.map((d) => d * d));
  const rowMeans = squared.map((row) => row.reduce((sum, d) => sum + d, 0) / n);
  const total = rowMeans.reduce((sum, d) => sum + d, 0) / n;
  const gram = squared.map((row, i) => row.map((d, j) => -0.5 * (d - rowMeans[i]! - rowMeans[j]! + total)));
  const first = leading(gram);
  const rest = gram.map((row, i) => row.map((g, j) => g - first.value * first.vector[i]! * first.vector[j]!));
  const second = leading(rest);
  const size = (axis: Eigen) => Math.sqrt(Math.max(axis.value, 0));
  return distance.map((_, i) => [first.vector[i]! * size(first), second.vector[i]! * size(second)]);
}

interface Eigen {
  value: number;
  vector: number[];
}

/** The largest eigenvalue of a symmetric matrix by power iteration on the matrix shifted to be positive definite. */
function leading(matrix: readonly (readonly number[])[]): Eigen {
  const n = matrix.length;
  const shift = Math.max(...matrix.map((row) => row.reduce((sum, v) => sum + Math.abs(v), 0)), 1e-12);
  const times = (v: readonly number[]) => matrix.map((row) => row.reduce((sum, m, j) => sum + m * v[j]!, 0));
  let vector = Array.from({ length: n }, (_, i) => Math.sin(i + 1));
  for (let step = 0; step < STEPS; step++) {
    const next = times(vector).map((v, i) => v + shift * vector[i]!);
    const length = Math.hypot(...next) || 1;
    vector = next.map((v) => v / length);
  }
  const image = times(vector);
  return { value: vector.reduce((sum, v, i) => sum + v * image[i]!, 0), vector };
}

/** Returns the cosine of two vectors of the same length; null where one has no length. */
export function cosine(one: readonly number[], other: readonly number[]): number | null {
  let product = 0;
  let first = 0;
  let second = 0;
  for (const [index, value] of one.entries()) {
    const against = other[index] ?? 0;
    product += value * against;
    first += value * value;
    second += against * against;
  }
  return first > 0 && second > 0 ? product / Math.sqrt(first * second) : null;
}

/** Returns at most `most` values spread evenly over a list, its ends included. */
export function spread<T>(list: readonly T[], most: number): T[] {
  if (list.length <= most) return [...list];
  const step = (list.length - 1) / Math.max(most - 1, 1);
  return Array.from({ length: most }, (_, index) => list[Math.round(index * step)] as T);
}

export interface Label {
  /** The middle of the text, and its base line. */
  x: number;
  y: number;
}

const LETTER = 6.6;
const LINE = 15;
const GAP = 12;
const DOT = 6;

export interface Box {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/** Places a label near each point, above it where there is room, so that no label lies on another one or on a point. */
export function placeLabels(
  points: readonly (readonly [number, number])[],
  words: readonly string[],
  width: number,
  height: number,
): Label[] {
  const taken: Box[] = points.map(([x, y]) => ({ left: x - DOT, right: x + DOT, top: y - DOT, bottom: y + DOT }));
  return points.map(([x, y], index) => {
    const half = ((words[index] ?? "").length * LETTER) / 2;
    const boxes = places(x, y, half).map((label) => boxOf(label, half));
    const inside = boxes.filter((box) => box.left > 0 && box.right < width && box.top > 0 && box.bottom < height);
    const box = inside.find((one) => taken.every((other) => !overlap(one, other))) ?? inside[0] ?? boxes[0]!;
    taken.push(box);
    return { x: (box.left + box.right) / 2, y: box.bottom - 3 };
  });
}

/** The places of a label from the best to the farthest: above, below, right, left, then in growing circles. */
function places(x: number, y: number, half: number): Label[] {
  const near = [[0, -GAP], [0, GAP + LINE], [half + GAP, 4], [-half - GAP, 4]] as const; // biome-ignore format: one line
  const circles = Array.from({ length: 12 * 8 }, (_, index) => {
    const angle = (index % 12) * (Math.PI / 6);
    const far = GAP + LINE * (1 + Math.floor(index / 12));
    return [(far + half) * Math.cos(angle), far * Math.sin(angle)] as const;
  });
  return [...near, ...circles].map(([right, down]) => ({ x: x + right, y: y + down }));
}

function boxOf({ x, y }: Label, half: number): Box {
  return { left: x - half, right: x + half, top: y - LINE + 3, bottom: y + 3 };
}

export function overlap(one: Box, other: Box): boolean {
  return one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom;
}
