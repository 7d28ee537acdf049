import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { currentId, currentModel, currentRun, send, stop } from "./chats";
import { Icon } from "./icons";

const TALLEST_PX = 240;

// What was being written in each conversation, until it is sent.
const drafts = new Map<string, string>();

export function Composer(): JSX.Element {
  const area = useRef<HTMLTextAreaElement>(null);
  const text = useSignal("");
  const running = currentRun.value !== null;
  const ready = text.value.trim() !== "" && currentModel.value !== "";

  useLayoutEffect(() => {
    text.value = drafts.get(currentId.value) ?? "";
    if (matchMedia("(hover: hover)").matches) area.current?.focus();
  }, [currentId.value]);
  useLayoutEffect(() => {
    if (!area.current) return;
    area.current.style.height = "auto";
    area.current.style.height = `${Math.min(area.current.scrollHeight, TALLEST_PX)}px`;
  }, [text.value]);

  const write = (value: string): void => {
    text.value = value;
    drafts.set(currentId.value, value);
  };
  const submit = (): void => {
    if (running || !ready) return;
    const message = text.value.trim();
    write("");
    send(message);
  };
  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <div class="composer-box">
        <label class="hidden" for="composer">
          Message
        </label>
        <textarea
          id="composer"
          ref={area}
          rows={1}
          placeholder="Write a message"
          enterkeyhint="send"
          value={text.value}
          onInput={(event) => write(event.currentTarget.value)}
          onKeyDown={onKeyDown}
        />
        {running ? (
          <button type="button" class="send" aria-label="Stop" title="Stop (Escape)" onClick={() => stop()}>
            <span class="square" />
          </button>
        ) : (
          <button type="submit" class="send" aria-label="Send" title="Send (Enter)" disabled={!ready}>
            <Icon name="send" />
          </button>
        )}
      </div>
      <p class="hint keys">Enter sends, Shift and Enter begin a new line, Escape stops an answer.</p>
    </form>
  );
}
