/** The conversations of this page, and the answers that come in. */
import { batch, computed, effect, signal } from "@preact/signals";
import { ApiError, chat, listModels, type ChatMessage } from "./api";
import { key, keyAsked } from "./key";
import {
  deleteConversation,
  loadConversation,
  loadConversations,
  newId,
  saveConversation,
  titleOf,
  type Conversation,
  type Message,
} from "./records";
import { defaultSettings, requestFields, type Settings } from "./settings";

/** An answer that is coming in. */
export interface Run {
  controller: AbortController;
  beganMs: number;
  firstMs: number; // 0: nothing came yet
  pieces: number;
}

export const conversations = signal<Conversation[]>([]);
/** Whether those that the browser keeps are there. */
export const loaded = signal(false);
export const currentId = signal("");
export const models = signal<string[] | null>(null); // null: not known yet
export const modelsError = signal("");
export const runs = signal<Record<string, Run>>({});
/** Why conversations cannot be kept, or "". */
export const keepingError = signal("");
/** The settings of the conversation that does not exist yet. */
const freshSettings = signal(defaultSettings());
const chosenModel = signal("");

export const current = computed(() => conversations.value.find((one) => one.id === currentId.value) ?? null);
export const currentRun = computed(() => runs.value[currentId.value] ?? null);
export const currentSettings = computed(() => current.value?.settings ?? freshSettings.value);
export const currentModel = computed(() => {
  const known = models.value ?? [];
  const wanted = [current.value?.model ?? "", chosenModel.value].find((name) => known.includes(name));
  return wanted ?? known[0] ?? "";
});

// ---- Keeping ----

const NOT_KEPT = "This browser does not let the page keep conversations; they are gone when it is closed.";
const others = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("consort");

async function keep(id: string): Promise<void> {
  const conversation = conversations.value.find((one) => one.id === id);
  try {
    if (conversation === undefined) await deleteConversation(id);
    else await saveConversation(conversation);
    others?.postMessage(id);
  } catch {
    keepingError.value = NOT_KEPT;
  }
}

/** Puts in a conversation, or takes out the one of that id. */
function place(id: string, conversation: Conversation | undefined): void {
  const rest = conversations.value.filter((one) => one.id !== id);
  conversations.value = (conversation ? [conversation, ...rest] : rest).sort((a, b) => b.changed - a.changed);
}

function change(id: string, fields: Partial<Conversation>): void {
  conversations.value = conversations.value.map((one) => (one.id === id ? { ...one, ...fields } : one));
}

export async function loadAll(): Promise<void> {
  if (others !== null)
    others.onmessage = async (event: MessageEvent<string>) => {
      if (runs.value[event.data] === undefined) place(event.data, await loadConversation(event.data));
    };
  try {
    const kept = await loadConversations();
    const here = new Set(conversations.value.map((one) => one.id)); // begun before these were there
    conversations.value = [...conversations.value, ...kept.filter((one) => !here.has(one.id))].sort((a, b) => b.changed - a.changed);
  } catch {
    keepingError.value = NOT_KEPT;
  }
  loaded.value = true;
}

export async function loadModels(): Promise<void> {
  try {
    models.value = await listModels();
    modelsError.value = "";
  } catch (problem) {
    modelsError.value = problem instanceof ApiError && problem.status !== 401 ? problem.message : "";
  }
}

// A key that was just entered is tried at once.
effect(() => {
  void key.value;
  void loadModels();
});

// ---- What a user does with a conversation ----

export function rename(id: string, title: string): void {
  change(id, { title });
  void keep(id);
}

export function remove(id: string): void {
  stop(id);
  place(id, undefined);
  if (currentId.value === id) location.hash = "#/";
  void keep(id);
}

export function chooseModel(model: string): void {
  chosenModel.value = model;
  if (current.value !== null) {
    change(currentId.value, { model });
    void keep(currentId.value);
  }
}

export function setSettings(settings: Settings): void {
  if (current.value === null) {
    freshSettings.value = settings;
  } else {
    change(currentId.value, { settings });
    void keep(currentId.value);
  }
}

/** Back to a page without a conversation. */
export function beginNew(): void {
  freshSettings.value = defaultSettings();
  currentId.value = ""; // at once, so that what is typed before the address has changed stands there
  location.hash = "#/";
}

/** Adds a message to the current conversation, or begins one, and asks for the answer. */
export function send(text: string): void {
  const message: Message = { role: "user", content: text };
  if (current.value !== null) {
    change(currentId.value, { messages: [...current.value.messages, message] });
  } else {
    const now = Date.now();
    const conversation: Conversation = {
      id: newId(),
      title: titleOf(text),
      model: currentModel.value,
      created: now,
      changed: now,
      settings: freshSettings.value,
      messages: [message],
    };
    batch(() => {
      place(conversation.id, conversation);
      currentId.value = conversation.id;
      freshSettings.value = defaultSettings();
    });
    location.hash = `#/c/${conversation.id}`;
  }
  void answer(currentId.value);
}

/** Goes back to the message at index, with another text, and on from there. */
export function resend(index: number, text: string): void {
  if (current.value === null) return;
  change(currentId.value, { messages: current.value.messages.slice(0, index) });
  send(text);
}

/** Answers the last message of the user again. */
export function retry(): void {
  const messages = current.value?.messages ?? [];
  const last = messages.map((message) => message.role).lastIndexOf("user");
  if (last < 0) return;
  change(currentId.value, { messages: messages.slice(0, last + 1) });
  void answer(currentId.value);
}

export function stop(id = currentId.value): void {
  runs.value[id]?.controller.abort();
}

// ---- Answers ----

const SHORT_MS = 20; // what took no longer is not measured
const SHOW_MS = 33; // what came in is shown this often
const SAVE_MS = 2000; // an answer under way is kept this often

/** What the server is sent: no reasoning, and no answers that are empty. */
function history(conversation: Conversation): ChatMessage[] {
  const system = conversation.settings.system.trim();
  const sent: ChatMessage[] = system === "" ? [] : [{ role: "system", content: system }];
  for (const { role, content } of conversation.messages) {
    const last = sent.at(-1);
    if (content === "") continue;
    if (last?.role === role) last.content += `\n\n${content}`; // templates want them in turns
    else sent.push({ role, content });
  }
  return sent;
}

function endRun(id: string): void {
  const rest = { ...runs.value };
  delete rest[id];
  runs.value = rest;
}

/** Fills message from the stream; calls show when there is something new to see. */
async function receive(conversation: Conversation, run: Run, message: Message, show: () => void): Promise<void> {
  let lastMs = 0;
  let thoughtMs = 0;
  const stream = chat(
    message.model ?? "",
    history(conversation),
    requestFields(conversation.settings),
    run.controller.signal,
  );
  for await (const piece of stream) {
    const now = performance.now();
    if (piece.content !== undefined || piece.reasoning !== undefined) {
      run.firstMs ||= now;
      run.pieces += 1;
      lastMs = now;
    }
    if (piece.reasoning !== undefined) {
      thoughtMs ||= now;
      message.reasoning = (message.reasoning ?? "") + piece.reasoning;
      message.reasoningMs = now - thoughtMs;
    }
    if (piece.content !== undefined) message.content += piece.content;
    if (piece.finish === "length") message.end = "length";
    if (piece.usage !== undefined)
      message.stats = {
        ...piece.usage,
        firstMs: run.firstMs - run.beganMs,
        perSecond: lastMs - run.firstMs > SHORT_MS ? ((piece.usage.output - 1) * 1000) / (lastMs - run.firstMs) : 0,
      };
    show();
  }
}

/** Asks for the answer to the conversation as it stands. */
async function answer(id: string): Promise<void> {
  const conversation = conversations.value.find((one) => one.id === id);
  if (conversation === undefined || runs.value[id] !== undefined) return;
  const run: Run = { controller: new AbortController(), beganMs: performance.now(), firstMs: 0, pieces: 0 };
  const message: Message = { role: "assistant", content: "", model: currentModel.value };
  const asked = conversation.messages;
  let timer = 0;
  let savedMs = Date.now();
  const show = (): void => {
    timer = 0;
    change(id, { messages: [...asked, { ...message }], changed: Date.now() });
    if (Date.now() - savedMs < SAVE_MS) return;
    savedMs = Date.now();
    void keep(id);
  };
  runs.value = { ...runs.value, [id]: run };
  show();
  void keep(id);
  try {
    await receive(conversation, run, message, () => (timer ||= window.setTimeout(show, SHOW_MS)));
  } catch (problem) {
    if (run.controller.signal.aborted) message.end = "stopped";
    else message.error = problem instanceof Error ? problem.message : String(problem);
  }
  clearTimeout(timer);
  batch(() => {
    if (conversations.value.some((one) => one.id === id)) {
      show();
      place(id, conversations.value.find((one) => one.id === id));
    }
    endRun(id);
  });
  void keep(id);
  if (models.value === null && keyAsked.value === "") void loadModels();
}
