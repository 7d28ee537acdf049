import { useSignalEffect } from "@preact/signals";
import { render, type JSX } from "preact";
import { useRef } from "preact/hooks";
import { chooseModel, current, currentId, currentModel, currentSettings, loadAll, loaded, loadModels, models, modelsError, currentRun, send, stop } from "./chats";
import { download } from "./clipboard";
import { Composer } from "./composer";
import { Dialogs } from "./dialogs";
import { Drawer } from "./drawer";
import { IconButton, Mark } from "./icons";
import { keyAsked } from "./key";
import { Messages } from "./messages";
import { asMarkdown } from "./records";
import { announcement, dialogOpen, drawerOpen, focusComposer, readAddress, sidebarOpen, view } from "./screen";
import { ServerView } from "./server";
import { settingsChanged } from "./settings";
import { Sidebar } from "./sidebar";
import "./style.css";

function ModelPicker(): JSX.Element {
  const known = models.value;
  return (
    <div class="picker">
      <label class="hidden" for="model">
        Model
      </label>
      <select id="model" value={currentModel.value} disabled={!known?.length} onChange={(event) => chooseModel(event.currentTarget.value)}>
        {known?.length ? known.map((name) => <option key={name}>{name}</option>) : <option>{known ? "no model" : "…"}</option>}
      </select>
    </div>
  );
}

function fileName(title: string, ending: string): string {
  return `${title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation"}.${ending}`;
}

function Menu(): JSX.Element | null {
  const menu = useRef<HTMLDivElement>(null);
  const conversation = current.value;
  if (conversation === null) return null;
  const item = (label: string, act: () => void): JSX.Element => (
    <button
      type="button"
      onClick={() => {
        menu.current?.hidePopover();
        act();
      }}
    >
      {label}
    </button>
  );
  return (
    <>
      <IconButton icon="more" label="Rename, export or delete this conversation" onClick={() => menu.current?.togglePopover()} />
      <div ref={menu} popover="auto" class="menu">
        {item("Rename…", () => (dialogOpen.value = "rename"))}
        {item("Export as Markdown", () => download(fileName(conversation.title, "md"), "text/markdown", asMarkdown(conversation)))}
        {item("Export as JSON", () => download(fileName(conversation.title, "json"), "application/json", JSON.stringify(conversation, null, 2)))}
        {item("Delete…", () => (dialogOpen.value = "delete"))}
      </div>
    </>
  );
}

function Bar(): JSX.Element {
  const chatting = view.value === "chat";
  const changed = settingsChanged(currentSettings.value);
  return (
    <header class="bar">
      <IconButton icon="menu" label="Open the list of conversations" class="narrow" expanded={sidebarOpen.value} onClick={() => (sidebarOpen.value = true)} />
      {chatting ? <ModelPicker /> : <h1>Server</h1>}
      <span class="space" />
      {chatting && (
        <span class="badge-box">
          <IconButton
            icon="settings"
            label={changed > 0 ? `Settings: ${changed} of your own` : "Settings"}
            onClick={() => (drawerOpen.value = true)}
          />
          {changed > 0 && <span class="badge" aria-hidden="true" />}
        </span>
      )}
      {chatting && <Menu />}
    </header>
  );
}

const EXAMPLES = [
  "What is consort?",
  "Explain a heat pump to a ten-year-old",
  "Write a friendly reminder about an unpaid invoice",
  "What does the shell command du -sh * | sort -h do?",
];

function Welcome(): JSX.Element {
  const none = models.value?.length === 0;
  return (
    <div class="welcome">
      <Mark />
      <h1>Ask your own server</h1>
      {modelsError.value ? (
        <div class="error" role="alert">
          <p>{modelsError.value}</p>
          <button type="button" onClick={() => void loadModels()}>
            Retry
          </button>
        </div>
      ) : (
        <p>
          {none
            ? "The server has no model yet. Start it with one: consort up model.gguf."
            : "What you write goes to this server and nowhere else, and your conversations stay in this browser."}
        </p>
      )}
      {currentModel.value !== "" && (
        <ul class="examples" aria-label="Examples">
          {EXAMPLES.map((text) => (
            <li key={text}>
              <button
                type="button"
                onClick={() => {
                  send(text);
                  focusComposer();
                }}
              >
                {text}
              </button>
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}

function Chat(): JSX.Element {
  return (
    <>
      {current.value !== null ? (
        <>
          <h1 class="hidden">{current.value.title}</h1>
          <Messages />
        </>
      ) : currentId.value !== "" && !loaded.value ? (
        <div class="messages-box" />
      ) : (
        <Welcome />
      )}
      <Composer />
    </>
  );
}

function SkipLink(): JSX.Element {
  const [id, text] = view.value === "chat" ? ["composer", "Skip to the message"] : ["figures", "Skip to the figures"];
  const skip = (event: Event): void => {
    event.preventDefault(); // the address names the view
    document.getElementById(id)?.focus();
  };
  return (
    <a class="skip" href={`#${id}`} onClick={skip}>
      {text}
    </a>
  );
}

function App(): JSX.Element {
  useSignalEffect(() => {
    const title = view.value === "server" ? "Server" : current.value?.title;
    document.title = title ? `${title} · consort` : "consort";
  });
  return (
    <>
      <SkipLink />
      <Sidebar />
      <main inert={sidebarOpen.value}>
        <Bar />
        {view.value === "server" ? <ServerView /> : <Chat />}
      </main>
      <Drawer />
      <Dialogs />
      <div class="hidden" role="status">
        {announcement.value}
      </div>
    </>
  );
}

addEventListener("hashchange", readAddress);
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented || drawerOpen.value || dialogOpen.value || keyAsked.value) return;
  if (sidebarOpen.value) sidebarOpen.value = false;
  else if (currentRun.value) stop();
});

readAddress();
render(<App />, document.getElementById("app") ?? document.body);
void loadAll();
