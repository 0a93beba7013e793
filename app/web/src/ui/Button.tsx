import type { ComponentChildren } from "preact";

interface Props {
  /** Whether it ignores clicks now. */
  disabled: boolean;
  kind?: "primary" | "danger" | "quiet";
  /** Whether it sends the form that it is in. */
  submit?: boolean;
  onClick?: () => void;
  children: ComponentChildren;
}

/**
 * A button that keeps the focus while it is disabled: it has `aria-disabled` and ignores clicks, since an element with the attribute
 * `disabled` loses the focus, and with it the place of keyboards and screen readers. A key that is held down clicks it once.
 */
export function Button({ disabled, kind, submit = false, onClick, children }: Props) {
  return (
    <button
      type={submit ? "submit" : "button"}
      {...(kind ? { class: kind } : {})}
      {...(disabled ? { "aria-disabled": true } : {})}
      onClick={(event) => {
        if (disabled)
          event.preventDefault(); // Enter in a field of its form sends nothing either
        else onClick?.();
      }}
      onKeyDown={(event) => {
        if (event.repeat && event.key === "Enter") event.preventDefault();
      }}
    >
      {children}
    </button>
  );
}

/** The `ref` of a control that takes the focus when it appears, because it takes the place of the one that was pressed. */
export function takeFocus(element: HTMLElement | null): void {
  element?.focus();
}
