/** What a number field takes. With a step of 1 it takes whole numbers only. */
export interface Bounds {
  min?: number;
  max?: number;
  step: number;
}

/** Returns the number that a text is; undefined where it is none, or one that is not allowed. */
export function numberIn(text: string, bounds: Bounds): number | undefined {
  return text.trim() === "" || problemOf(text, bounds) !== null ? undefined : Number(text);
}

/** Says why a typed number is not taken; null where it is, and where nothing is typed. */
export function problemOf(text: string, { min = -Infinity, max = Infinity, step }: Bounds): string | null {
  const number = Number(text);
  if (text.trim() === "") return null;
  if (!Number.isFinite(number)) return "It must be a number.";
  if (number < min || number > max) return `It must be ${rangeText(min, max)}.`;
  return step === 1 && !Number.isInteger(number) ? "It must be a whole number." : null;
}

function rangeText(min: number, max: number): string {
  if (max === Infinity) return `at least ${min}`;
  return min === -Infinity ? `at most ${max}` : `${min} to ${max}`;
}
