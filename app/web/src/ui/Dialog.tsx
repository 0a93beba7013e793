import type { ComponentChildren } from "preact";
import { useId, useLayoutEffect, useRef } from "preact/hooks";
import { Button } from "./Button";

interface Props {
  title: string;
  onClose: () => void;
  wide?: boolean;
  children: ComponentChildren;
}

/** Shows a modal window with a title; Esc and the button close it. However it ends, the focus goes back to what had it before. */
export function Dialog({ title, onClose, wide = false, children }: Props) {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useLayoutEffect(() => {
    const dialog = ref.current;
    dialog?.showModal();
    return () => dialog?.close(); // while it is on the page: one that is only taken away gives the focus to nothing
  }, []);
  return (
    <dialog ref={ref} class={wide ? "wide" : ""} aria-labelledby={id} onClose={onClose}>
      <div class="stack">
        <div class="row between">
          <h2 id={id}>{title}</h2>
          <Button label="Close" kind="quiet" onClick={() => ref.current?.close()} />
        </div>
        {children}
      </div>
    </dialog>
  );
}
