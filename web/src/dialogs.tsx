import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import { conversations, current, remove, rename } from "./chats";
import { Dialog } from "./dialog";
import { keyAsked, setKey } from "./key";
import { dialogOpen, focusComposer } from "./screen";

function close(): void {
  dialogOpen.value = "";
}

export function KeyDialog(): JSX.Element {
  const input = useRef<HTMLInputElement>(null);
  const remember = useRef<HTMLInputElement>(null);
  const submit = (event: Event): void => {
    event.preventDefault();
    const text = input.current?.value.trim() ?? "";
    if (text === "") return;
    keyAsked.value = "";
    setKey(text, remember.current?.checked ?? false);
  };
  return (
    <Dialog title="This server needs a key" close={() => (keyAsked.value = "")}>
      <form onSubmit={submit}>
        {keyAsked.value === "wrong" && (
          <p class="error" role="alert">
            The server does not know this key. Check it, or ask who runs the server for another.
          </p>
        )}
        <label for="key">Key</label>
        <input id="key" ref={input} type="password" autocomplete="off" spellcheck={false} autofocus required />
        <p class="hint">Whoever runs the server has it. It is kept until this window is closed.</p>
        <label class="check">
          <input ref={remember} type="checkbox" />
          Remember it in this browser
        </label>
        <div class="row end">
          <button type="submit" class="primary">
            Use this key
          </button>
        </div>
      </form>
    </Dialog>
  );
}

function RenameDialog(): JSX.Element {
  const input = useRef<HTMLInputElement>(null);
  const submit = (event: Event): void => {
    event.preventDefault();
    const title = input.current?.value.trim() ?? "";
    if (title === "" || current.value === null) return;
    rename(current.value.id, title);
    close();
  };
  return (
    <Dialog title="Rename the conversation" close={close}>
      <form onSubmit={submit}>
        <label for="title">Name</label>
        <input id="title" ref={input} type="text" maxLength={200} defaultValue={current.value?.title ?? ""} autofocus required />
        <div class="row end">
          <button type="button" onClick={close}>
            Cancel
          </button>
          <button type="submit" class="primary">
            Rename
          </button>
        </div>
      </form>
    </Dialog>
  );
}

interface ConfirmProps {
  title: string;
  text: string;
  verb: string;
  act: () => void;
}

function Confirm({ title, text, verb, act }: ConfirmProps): JSX.Element {
  return (
    <Dialog title={title} close={close}>
      <p>{text}</p>
      <div class="row end">
        <button type="button" onClick={close} autofocus>
          Cancel
        </button>
        <button
          type="button"
          class="danger"
          onClick={() => {
            act();
            close();
            focusComposer();
          }}
        >
          {verb}
        </button>
      </div>
    </Dialog>
  );
}

export function Dialogs(): JSX.Element | null {
  if (keyAsked.value !== "") return <KeyDialog />;
  const conversation = current.value;
  if (dialogOpen.value === "rename") return <RenameDialog />;
  if (dialogOpen.value === "delete" && conversation !== null)
    return (
      <Confirm
        title="Delete the conversation?"
        text={`“${conversation.title}” is kept in this browser only, so it cannot be brought back.`}
        verb="Delete"
        act={() => remove(conversation.id)}
      />
    );
  if (dialogOpen.value === "delete-all")
    return (
      <Confirm
        title="Delete all conversations?"
        text="They are kept in this browser only, so they cannot be brought back."
        verb="Delete all"
        act={() => conversations.value.forEach((one) => remove(one.id))}
      />
    );
  return null;
}
