import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { current, currentRun, resend, retry, type Run } from "./chats";
import { copyText } from "./clipboard";
import { count, rate, seconds } from "./format";
import { Icon, IconButton, type IconName } from "./icons";
import { blocksOf, htmlOf, type Block } from "./markdown";
import type { Message } from "./records";
import { announcement } from "./screen";
import { Waiting } from "./waiting";

function BlockView({ block }: { block: Block }): JSX.Element {
  const html = useMemo(() => htmlOf(block), [block.source]);
  return <div class="block" dangerouslySetInnerHTML={{ __html: html }} />;
}

/** The button of a code block is part of its HTML, so its clicks are heard here. */
function onCopyCode(event: MouseEvent): void {
  const button = (event.target as Element).closest<HTMLButtonElement>(".copy-code");
  const code = button?.closest(".code")?.querySelector("pre")?.textContent;
  if (!button || code === undefined || code === null) return;
  void copyText(code.replace(/\n$/, "")).then((done) => {
    button.textContent = done ? "Copied" : "Not allowed";
    announcement.value = done ? "Code copied" : "The browser does not allow copying";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

function Markdown({ text }: { text: string }): JSX.Element {
  const blocks = useMemo(() => blocksOf(text), [text]);
  return (
    <div class="markdown" onClick={onCopyCode}>
      {blocks.map((block, i) => (
        <BlockView key={i} block={block} />
      ))}
    </div>
  );
}

function Action({ icon, label, onClick }: { icon: IconName; label: string; onClick: () => void }): JSX.Element {
  return <IconButton icon={icon} label={label} class="small" onClick={onClick} />;
}

function CopyAction({ text }: { text: string }): JSX.Element {
  const done = useSignal(false);
  const copy = async (): Promise<void> => {
    done.value = await copyText(text);
    announcement.value = done.value ? "Copied" : "The browser does not allow copying";
    setTimeout(() => (done.value = false), 1500);
  };
  return <Action icon="copy" label={done.value ? "Copied" : "Copy"} onClick={() => void copy()} />;
}

function Editor({ text, index, close }: { text: string; index: number; close: () => void }): JSX.Element {
  const area = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => {
    area.current?.focus();
    area.current?.setSelectionRange(text.length, text.length);
  }, []);
  const submit = (): void => {
    const changed = area.current?.value.trim() ?? "";
    if (changed === "") return;
    close();
    resend(index, changed);
  };
  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key === "Escape") close();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  };
  return (
    <div class="editor">
      <textarea ref={area} aria-label="Your message" rows={Math.min(text.split("\n").length + 1, 12)} defaultValue={text} onKeyDown={onKeyDown} />
      <div class="row">
        <p class="hint">What came after it is replaced.</p>
        <button type="button" onClick={close}>
          Cancel
        </button>
        <button type="button" class="primary" onClick={submit}>
          Send again
        </button>
      </div>
    </div>
  );
}

function Question({ message, index }: { message: Message; index: number }): JSX.Element {
  const editing = useSignal(false);
  if (editing.value) return <Editor text={message.content} index={index} close={() => (editing.value = false)} />;
  return (
    <article class="question">
      <h2 class="hidden">You</h2>
      <div class="bubble">{message.content}</div>
      <div class="actions">
        <CopyAction text={message.content} />
        {!currentRun.value && <Action icon="edit" label="Edit and send again" onClick={() => (editing.value = true)} />}
      </div>
    </article>
  );
}

function Reasoning({ message, running }: { message: Message; running: boolean }): JSX.Element | null {
  if (!message.reasoning) return null;
  const thinking = running && message.content === "";
  return (
    <details class="reasoning">
      <summary>{thinking ? "Thinking…" : `Thought for ${seconds(message.reasoningMs ?? 0)}`}</summary>
      <Markdown text={message.reasoning} />
    </details>
  );
}

/** How fast the answer is, or was. */
function Figures({ message, run }: { message: Message; run: Run | null }): JSX.Element | null {
  if (run !== null) {
    const ms = performance.now() - run.firstMs;
    if (run.firstMs === 0 || ms < 300) return null;
    return <p class="figures">{rate(((run.pieces - 1) * 1000) / ms)} tokens/s</p>;
  }
  if (!message.stats) return null;
  const { output, perSecond, firstMs, prompt, cached } = message.stats;
  return (
    <p class="figures" title={`Prompt: ${count(prompt)} tokens, ${count(cached)} of them from the cache`}>
      {perSecond > 0 && <span>{rate(perSecond)} tokens/s</span>}
      <span>{count(output)} tokens</span>
      <span>first after {seconds(firstMs)}</span>
    </p>
  );
}

const ENDS = { stopped: "Stopped.", length: "The answer reached the longest length that the settings allow, or the end of the context." };

function Answer({ message, run, last }: { message: Message; run: Run | null; last: boolean }): JSX.Element {
  const empty = message.content === "" && !message.reasoning;
  return (
    <article class="answer" aria-busy={run !== null}>
      <h2 class="hidden">{message.model}</h2>
      <Reasoning message={message} running={run !== null} />
      {run !== null && empty && <Waiting model={message.model ?? ""} beganMs={run.beganMs} />}
      {message.content !== "" && <Markdown text={message.content} />}
      {message.end && <p class="note">{ENDS[message.end]}</p>}
      {message.error && (
        <div class="error" role="alert">
          <p>{message.error}</p>
          <button type="button" onClick={retry}>
            Retry
          </button>
        </div>
      )}
      <div class="actions">
        {run === null && message.content !== "" && <CopyAction text={message.content} />}
        {run === null && last && !message.error && <Action icon="retry" label="Answer again" onClick={retry} />}
        <Figures message={message} run={run} />
      </div>
    </article>
  );
}

/** Tells screen readers each block of the answer once it is whole, as text. */
function useAnnouncements(message: Message | undefined, running: boolean): void {
  const told = useRef(0);
  const wasRunning = useRef(false);
  useEffect(() => {
    const blocks = message?.role === "assistant" ? blocksOf(message.content) : [];
    if (running && !wasRunning.current) told.current = 0;
    const whole = running ? blocks.length - 1 : blocks.length;
    if ((running || wasRunning.current) && whole > told.current) {
      announcement.value = blocks
        .slice(told.current, whole)
        .map((block) => block.token.raw.trim())
        .join("\n");
      told.current = whole;
    }
    wasRunning.current = running;
  }, [message?.content, running]);
}

const NEAR_PX = 80;

export function Messages(): JSX.Element {
  const conversation = current.value;
  const run = currentRun.value;
  const messages = conversation?.messages ?? [];
  const scroller = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const away = useSignal(false);
  const toEnd = (): void => scroller.current?.scrollTo({ top: scroller.current.scrollHeight });
  const onScroll = (): void => {
    const box = scroller.current;
    if (!box) return;
    follows.current = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_PX;
    away.value = !follows.current;
  };
  useLayoutEffect(() => {
    follows.current = true;
    toEnd();
  }, [conversation?.id, messages.length]);
  useLayoutEffect(() => {
    if (follows.current) toEnd();
  });
  useAnnouncements(messages.at(-1), run !== null);
  return (
    <div class="messages-box">
      <div class="messages" ref={scroller} onScroll={onScroll} tabIndex={-1}>
        <div class="column">
          {messages.map((message, i) =>
            message.role === "user" ? (
              <Question key={`${conversation?.id}${i}`} message={message} index={i} />
            ) : (
              <Answer key={`${conversation?.id}${i}`} message={message} run={i === messages.length - 1 ? run : null} last={i === messages.length - 1} />
            ),
          )}
        </div>
      </div>
      {away.value && (
        <button type="button" class="to-end" onClick={toEnd}>
          <Icon name="down" />
          Latest
        </button>
      )}
    </div>
  );
}
