import type { ComponentChildren, Ref } from "preact";

interface Props {
  /** What it says; children take its place where that is more than a text. */
  label?: string;
  /** Whether it ignores clicks now. */
  disabled?: boolean;
  kind?: "primary" | "danger" | "quiet";
  /** Whether it sends the form that it is in. */
  submit?: boolean;
  /** Whether it is on; absent where it is no switch. */
  pressed?: boolean;
  title?: string;
  buttonRef?: Ref<HTMLButtonElement>;
  onClick?: (event: MouseEvent) => void;
  children?: ComponentChildren;
}

/**
 * A button that keeps the focus while it is disabled: it has `aria-disabled` and ignores clicks, since an element with the attribute
 * `disabled` loses the focus, and with it the place of keyboards and screen readers. A key that is held down clicks it once.
 */
export function Button({ label, disabled, kind, submit = false, pressed, title, buttonRef, onClick, children }: Props) {
  return (
    <button
      type={submit ? "submit" : "button"}
      {...(kind ? { class: kind } : {})}
      {...(disabled ? { "aria-disabled": true } : {})}
      {...(pressed === undefined ? {} : { "aria-pressed": pressed })}
      {...(title ? { title } : {})}
      {...(buttonRef ? { ref: buttonRef } : {})}
      onClick={(event) => {
        if (disabled)
          event.preventDefault(); // Enter in a field of its form sends nothing either
        else onClick?.(event);
      }}
      onKeyDown={(event) => {
        if (event.repeat && event.key === "Enter") event.preventDefault();
      }}
    >
      {children ?? label}
    </button>
  );
}

/** The `ref` of a control that takes the focus when it appears, because it takes the place of the one that was pressed. */
export function takeFocus(element: HTMLElement | null): void {
  element?.focus();
}
