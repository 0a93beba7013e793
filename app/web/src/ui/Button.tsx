import type { ComponentChildren } from "preact";

interface Props {
  /** Whether it does nothing now. */
  unable: boolean;
  kind?: "primary" | "danger" | "quiet";
  /** Whether it sends the form that it is in. */
  submit?: boolean;
  onClick?: () => void;
  children: ComponentChildren;
}

/**
 * A button that cannot always be pressed, while its own work goes on for instance. It keeps the focus then: a button that is `disabled`
 * loses it, and who uses the keyboard or listens loses the place. A key that is held presses it once, not again after every rest.
 */
export function Button({ unable, kind, submit = false, onClick, children }: Props) {
  return (
    <button
      type={submit ? "submit" : "button"}
      {...(kind ? { class: kind } : {})}
      {...(unable ? { "aria-disabled": true } : {})}
      onClick={(event) => {
        if (unable)
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
