import type { ComponentChildren, JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { IconButton } from "./icons";

interface DialogProps {
  title: string;
  close: () => void;
  class?: string;
  children: ComponentChildren;
}

/** A modal dialog: the browser keeps the focus in it and gives it back, and Escape closes it. */
export function Dialog({ title, close, class: more, children }: DialogProps): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const element = dialog.current;
    element?.showModal();
    return () => element?.close();
  }, []);
  const onClick = (event: MouseEvent): void => {
    if (event.target === dialog.current) close(); // beside it
  };
  return (
    <dialog ref={dialog} class={more} aria-labelledby="dialog-title" onClose={() => dialog.current && close()} onClick={onClick}>
      <div class="dialog-body">
        <div class="dialog-head">
          <h2 id="dialog-title">{title}</h2>
          <IconButton icon="close" label="Close" onClick={close} />
        </div>
        {children}
      </div>
    </dialog>
  );
}
