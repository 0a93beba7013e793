/** Moves the focus once the page has changed: the element that has it is about to go. */
export function focusNext(selector: string): void {
  requestAnimationFrame(() => document.querySelector<HTMLElement>(selector)?.focus());
}
