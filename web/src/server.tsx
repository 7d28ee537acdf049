/** What the server is doing, asked for once a second while it is looked at. */
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { ApiError, getState, type ModelState, type ServerState } from "./api";
import { ClusterView } from "./cluster";
import { Facts } from "./facts";
import { bytes, count, parameters, rate, span } from "./format";
import { key } from "./key";
import { usePoll } from "./poll";

const POLL_MS = 1000;
const HISTORY = 60; // rates that are drawn

interface Sample {
  atMs: number;
  output: number;
  prompt: number; // tokens that were computed, not those from the cache
}

function sum(models: ModelState[], value: (model: ModelState) => number | undefined): number {
  return models.reduce((total, model) => total + (value(model) ?? 0), 0);
}

function sampleOf(state: ServerState): Sample {
  return {
    atMs: state.uptime_ms,
    output: sum(state.models, (one) => one.output_tokens),
    prompt: sum(state.models, (one) => (one.prompt_tokens ?? 0) - (one.cached_tokens ?? 0)),
  };
}

/** Per second; a model that was closed takes its counters with it. */
function rates(samples: Sample[], value: (sample: Sample) => number): number[] {
  return samples.slice(1).map((sample, i) => {
    const before = samples[i] ?? sample;
    const ms = sample.atMs - before.atMs;
    return ms > 0 ? Math.max(((value(sample) - value(before)) * 1000) / ms, 0) : 0;
  });
}

function Curve({ values }: { values: number[] }): JSX.Element {
  const most = Math.max(...values, 1);
  const points = values.map((value, i) => `${((HISTORY - values.length + i) * 100) / (HISTORY - 1)},${29 - (value / most) * 27}`);
  return (
    <svg class="curve" viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">
      <path d="M0 29h100" />
      {points.length > 1 && <polyline points={points.join(" ")} />}
    </svg>
  );
}

interface FigureProps {
  label: string;
  value: string;
  more?: string;
  values?: number[];
}

function Figure({ label, value, more, values }: FigureProps): JSX.Element {
  return (
    <div class="figure">
      <dt>{label}</dt>
      <dd>
        <strong>{value}</strong>
        {more && <span>{more}</span>}
        {values && <Curve values={values} />}
      </dd>
    </div>
  );
}

function share(part: number, whole: number): string {
  return whole > 0 ? `${Math.round((100 * part) / whole)} %` : "none";
}

function Figures({ state, samples }: { state: ServerState; samples: Sample[] }): JSX.Element {
  const { models, memory } = state;
  const output = rates(samples, (one) => one.output);
  const prompt = rates(samples, (one) => one.prompt);
  const queued = sum(models, (one) => one.queued);
  const paused = sum(models, (one) => one.paused);
  const promptTokens = sum(models, (one) => one.prompt_tokens);
  const pages = sum(models, (one) => one.kv_pages);
  const free = sum(models, (one) => one.kv_pages_free);
  const cached = sum(models, (one) => one.kv_pages_cached);
  return (
    <dl class="figures-grid">
      <Figure label="Writing" value={`${rate(output.at(-1) ?? 0)} tokens/s`} values={output} />
      <Figure label="Reading prompts" value={`${rate(prompt.at(-1) ?? 0)} tokens/s`} values={prompt} />
      <Figure
        label="Requests"
        value={`${count(sum(models, (one) => one.running))} running`}
        more={`${count(queued)} waiting${paused > 0 ? `, ${count(paused)} paused for lack of memory` : ""}`}
      />
      <Figure
        label="Prefix cache"
        value={share(
          sum(models, (one) => one.cached_tokens),
          promptTokens,
        )}
        more={`of ${count(promptTokens)} prompt tokens were known, in ${count(sum(models, (one) => one.prefix_hits))} of ${count(sum(models, (one) => one.accepted))} requests`}
      />
      <Figure label="KV cache" value={share(pages - free, pages)} more={`of ${count(pages)} pages; ${count(cached)} kept for later prompts`} />
      <Figure
        label="Memory"
        value={`${bytes(memory.used_bytes)} taken`}
        more={`of ${bytes(memory.limit_bytes)} for models; ${bytes(memory.free_bytes)} free of ${bytes(memory.total_bytes)} in this machine`}
      />
      <Figure label="Connections" value={count(state.connections)} more="open now" />
      <Figure label="Up for" value={span(state.uptime_ms)} more={`consort ${state.version}${state.draining ? ", shutting down" : ""}`} />
    </dl>
  );
}

const STATES = {
  open: "open",
  opening: "being opened",
  waiting: "waits for memory",
  stopping: "being stopped",
  closed: "opened when asked for",
};

function ModelCard({ model }: { model: ModelState }): JSX.Element {
  const facts: [string, string][] = [["File", bytes(model.file_bytes)]];
  if (model.parameters !== undefined) facts.push(["Parameters", parameters(model.parameters)]);
  if (model.context !== undefined) facts.push(["Context", `${count(model.context)} tokens`]);
  if (model.memory_bytes !== undefined) facts.push(["Memory", bytes(model.memory_bytes)]);
  if (model.state === "open") {
    facts.push(["Running", count(model.running ?? 0)], ["Waiting", count(model.queued ?? 0)]);
    facts.push(["Answered", count(model.finished ?? 0)], ["Tokens written", count(model.output_tokens ?? 0)]);
    const bad = (model.failed ?? 0) + (model.refused ?? 0);
    if (bad > 0) facts.push(["Failed or refused", count(bad)]);
  }
  return (
    <li class="card">
      <h3>
        <span class="ellipsis">{model.name}</span>
        <span class={`state ${model.state}`}>{STATES[model.state]}</span>
      </h3>
      <Facts facts={facts} />
    </li>
  );
}

export function ServerView(): JSX.Element {
  const state = useSignal<ServerState | null>(null);
  const samples = useSignal<Sample[]>([]);
  const error = useSignal("");
  const poll = async (): Promise<void> => {
    try {
      const now = await getState();
      const sample = sampleOf(now);
      const before = samples.value.at(-1);
      const restarted = before !== undefined && before.atMs > sample.atMs;
      samples.value = [...(restarted ? [] : samples.value), sample].slice(-HISTORY - 1);
      state.value = now;
      error.value = "";
    } catch (problem) {
      error.value = problem instanceof ApiError ? problem.message : String(problem);
    }
  };
  usePoll(POLL_MS, poll, key.value);
  return (
    <div class="server" id="figures" tabIndex={0}>
      <div class="wide-column">
        {error.value && (
          <p class="error" role="alert">
            {error.value}
          </p>
        )}
        {state.value && (
          <>
            <Figures state={state.value} samples={samples.value} />
            <ClusterView />
            <h2>Models</h2>
            {state.value.models.length === 0 && <p>There is none yet: start the server with one, as consort up model.gguf.</p>}
            <ul class="cards">
              {state.value.models.map((model) => (
                <ModelCard key={model.name} model={model} />
              ))}
            </ul>
            <p class="hint">The same numbers, for Prometheus, are at /metrics.</p>
          </>
        )}
      </div>
    </div>
  );
}
