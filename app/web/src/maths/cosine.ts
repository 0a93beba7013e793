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
