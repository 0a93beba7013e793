/** A moment in the words of the reader's language, with its day: what is shown may be of another one. */
export function shortTime(text: string): string {
  return new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
