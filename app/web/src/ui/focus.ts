/** The `ref` of a control that takes the focus when it appears, because it takes the place of the one that was pressed. */
export function takeFocus(element: HTMLElement | null): void {
  element?.focus();
}
