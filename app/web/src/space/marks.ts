/** Colours that groups of texts have; there is a custom property for each. */
export const COLOURS = 8;

/** A corner of a mark on the screen, in radii from its middle. */
export type Corner = readonly [number, number];

/** The outlines of marks: a circle, which has no corners, then a triangle, a square and a cross. All are about as large. */
export const MARKS: readonly (readonly Corner[])[] = [
  [],
  [[0, -1.5], [1.35, 0.8], [-1.35, 0.8]],
  [[-1, -1], [1, -1], [1, 1], [-1, 1]],
  cross(0.55, 1.5),
]; // biome-ignore format: a mark a line

/** How many groups look different from each other. */
export const LOOKS = COLOURS * MARKS.length;

/** The number of the colour of a group, from 1. */
export function colourOf(group: number): number {
  return (group % COLOURS) + 1;
}

/** The outline of a group: groups that share a colour have different ones. */
export function markOf(group: number): readonly Corner[] {
  return MARKS[Math.floor(group / COLOURS) % MARKS.length] ?? [];
}

function cross(narrow: number, far: number): Corner[] {
  const arm = [[-narrow, -narrow], [-narrow, -far], [narrow, -far]] as const; // biome-ignore format: one line
  const turned = ([x, y]: Corner, turns: number): Corner => (turns === 0 ? [x, y] : turned([-y, x], turns - 1));
  return [0, 1, 2, 3].flatMap((turns) => arm.map((corner) => turned(corner, turns)));
}
