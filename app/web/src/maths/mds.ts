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
