/** The server's API as the page uses it. Every failure is an ApiError whose text a user can act on. */
import { key, keyAsked } from "./key";
import { eventsOf } from "./sse";

export class ApiError extends Error {
  constructor(
    text: string,
    readonly status: number,
    readonly code = "",
  ) {
    super(text);
  }
}

interface ErrorBody {
  error?: { message?: string; code?: string | null };
}

const UNREACHABLE =
  "The server does not answer. Check that consort is still running and that this device can reach it, then retry.";
const BROKEN = "The connection broke before the answer was whole. Retry asks again.";

/** What to do about an error, to stand behind the server's own sentence. */
function advice(status: number, code: string, wait: string | null): string {
  if (code === "context_length_exceeded") return "Start a new chat, or edit an earlier message to go on from there.";
  if (status === 404) return "Choose another model at the top.";
  if (wait !== null) return `Try again in ${wait} ${wait === "1" ? "second" : "seconds"}.`;
  if (status === 503) return "Try again in a moment.";
  if (status >= 500) return "If it happens again, the server's log says more.";
  return "";
}

function sentence(text: string): string {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

async function failure(response: Response): Promise<ApiError> {
  const body = (await response.json().catch(() => ({}))) as ErrorBody;
  const said = body.error?.message ?? `the server answered with ${response.status} ${response.statusText}`;
  if (response.status === 401) {
    keyAsked.value = key.value === "" ? "missing" : "wrong";
    return new ApiError("This server needs a key. Enter it, then retry.", 401);
  }
  const code = body.error?.code ?? "";
  const more = advice(response.status, code, response.headers.get("Retry-After"));
  return new ApiError(`${sentence(said)} ${more}`.trim(), response.status, code);
}

async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key.value !== "") headers.set("Authorization", `Bearer ${key.value}`);
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers, cache: "no-store" });
  } catch (problem) {
    if (init.signal?.aborted) throw problem;
    throw new ApiError(UNREACHABLE, 0);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

export async function listModels(): Promise<string[]> {
  const body = (await (await ask("/v1/models")).json()) as { data: { id: string }[] };
  return body.data.map((model) => model.id);
}

export interface ModelState {
  name: string;
  state: "closed" | "opening" | "waiting" | "open" | "stopping";
  file_bytes: number;
  parameters?: number;
  context?: number;
  memory_bytes?: number;
  queued?: number;
  running?: number;
  paused?: number;
  accepted?: number;
  finished?: number;
  refused?: number;
  cancelled?: number;
  failed?: number;
  prompt_tokens?: number;
  cached_tokens?: number;
  output_tokens?: number;
  prefix_hits?: number;
  kv_pages?: number;
  kv_pages_free?: number;
  kv_pages_cached?: number;
}

export interface ServerState {
  version: string;
  uptime_ms: number;
  connections: number;
  draining: boolean;
  memory: { total_bytes: number; free_bytes: number; used_bytes: number; limit_bytes: number };
  models: ModelState[];
}

export async function getState(): Promise<ServerState> {
  return (await (await ask("/consort/state")).json()) as ServerState;
}

export interface ClusterNode {
  id: string;
  name: string;
  state: "up" | "down";
  self: boolean;
  addresses: string[];
  // Of one that is up:
  version?: string; // of its program
  memory_limit?: number;
  memory_free?: number;
  bandwidth?: number; // with which it reads weights, in bytes a second; 0: not measured yet
  load?: number; // of its processor, from 0 to 1
  models?: { sha: string; name: string }[];
  // Of one that is not:
  reason?: string;
  lost_ms?: number;
}

export interface ClusterInstance {
  id: number;
  model: [sha: string, name: string, bytes: number];
  state: "planning" | "reserving" | "preparing" | "opening" | "running" | "failed";
  draining: boolean;
  requests: number;
  recoveries: number;
  owner: number; // a rank
  members: [node: string, bytes: number, object: string][]; // by rank
  spec?: { stages?: { first: number; end: number; shares: number[] }[]; n_ctx?: number };
  predicted: number; // tokens a second of one text; 0: not known
  reached?: number; // of late, the same
  reason: string;
  node: string; // who tells
}

/** What consort status shows; see cluster_core_status. */
export interface ClusterStatus {
  nodes: ClusterNode[];
  links: { from: string; to: string; latency_us: number; bandwidth: number }[];
  instances: ClusterInstance[];
  transfers: { node: string; object: string; done: number; of: number }[];
  problems: { kind: string; text: string }[];
}

/** null: the server is in no cluster. */
export async function getCluster(): Promise<ClusterStatus | null> {
  try {
    return (await (await ask("/consort/cluster")).json()) as ClusterStatus;
  } catch (problem) {
    if (problem instanceof ApiError && problem.code === "no_cluster") return null;
    throw problem;
  }
}

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

/** A piece of an answer; usage comes once, at the end. */
export interface ChatPiece {
  content?: string;
  reasoning?: string;
  finish?: string;
  usage?: { prompt: number; cached: number; output: number };
}

interface Chunk extends ErrorBody {
  choices?: {
    delta?: { content?: string | null; reasoning_content?: string | null };
    finish_reason?: string | null;
  }[];
  usage?: {
    prompt_tokens: number;
    completion_tokens: number;
    prompt_tokens_details?: { cached_tokens?: number };
  } | null;
}

function pieceOf(chunk: Chunk): ChatPiece {
  const piece: ChatPiece = {};
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) piece.content = choice.delta.content;
  if (choice?.delta?.reasoning_content) piece.reasoning = choice.delta.reasoning_content;
  if (choice?.finish_reason) piece.finish = choice.finish_reason;
  if (chunk.usage) {
    piece.usage = {
      prompt: chunk.usage.prompt_tokens,
      cached: chunk.usage.prompt_tokens_details?.cached_tokens ?? 0,
      output: chunk.usage.completion_tokens,
    };
  }
  return piece;
}

/** Streams an answer. settings are further fields of the request. */
export async function* chat(
  model: string,
  messages: ChatMessage[],
  settings: Record<string, unknown>,
  signal: AbortSignal,
): AsyncGenerator<ChatPiece> {
  const body = { model, messages, ...settings, stream: true, stream_options: { include_usage: true } };
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (response.body === null) throw new ApiError(BROKEN, 0);
  try {
    for await (const data of eventsOf(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data) as Chunk;
      if (chunk.error) throw new ApiError(sentence(chunk.error.message ?? BROKEN), 500);
      yield pieceOf(chunk);
    }
  } catch (problem) {
    if (signal.aborted || problem instanceof ApiError) throw problem;
  }
  throw new ApiError(BROKEN, 0);
}
