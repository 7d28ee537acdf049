/** Conversations as they are kept in the browser (IndexedDB), and as they are exported. */
import type { Settings } from "./settings";

export interface Stats {
  prompt: number; // tokens
  cached: number; // of these, taken from the server's prefix cache
  output: number;
  firstMs: number; // until the first token
  perSecond: number; // tokens after the first
}

export interface Message {
  role: "user" | "assistant";
  content: string;
  reasoning?: string;
  reasoningMs?: number;
  model?: string;
  stats?: Stats;
  error?: string;
  end?: "stopped" | "length"; // why it is not whole
}

export interface Conversation {
  id: string;
  title: string;
  model: string;
  created: number; // ms since 1970
  changed: number;
  settings: Settings;
  messages: Message[];
}

const STORE = "conversations";
let database: Promise<IDBDatabase> | null = null;

function open(): Promise<IDBDatabase> {
  database ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("consort", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("no database"));
  });
  return database;
}

async function run<T>(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const store = (await open()).transaction(STORE, mode).objectStore(STORE);
  return new Promise((resolve, reject) => {
    const request = act(store);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("the database failed"));
  });
}

export function loadConversations(): Promise<Conversation[]> {
  return run("readonly", (store) => store.getAll() as IDBRequest<Conversation[]>);
}

export function loadConversation(id: string): Promise<Conversation | undefined> {
  return run("readonly", (store) => store.get(id) as IDBRequest<Conversation | undefined>);
}

export async function saveConversation(conversation: Conversation): Promise<void> {
  await run("readwrite", (store) => store.put(conversation));
}

export async function deleteConversation(id: string): Promise<void> {
  await run("readwrite", (store) => store.delete(id));
}

/** Unlike crypto.randomUUID, this is there without TLS as well. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, "0")).join("");
}

/** The first words of a message. */
export function titleOf(text: string): string {
  const line = text.trim().split(/\s+/).join(" ");
  return line.length <= 48 ? line : `${line.slice(0, 48).replace(/\s+\S*$/, "")}…`;
}

export function asMarkdown(conversation: Conversation): string {
  const parts = [`# ${conversation.title}`];
  if (conversation.settings.system !== "") parts.push(`**System**\n\n${conversation.settings.system}`);
  for (const message of conversation.messages)
    parts.push(`**${message.role === "user" ? "You" : (message.model ?? "Answer")}**\n\n${message.content}`);
  return parts.join("\n\n") + "\n";
}
