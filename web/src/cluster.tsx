/** The cluster as this server sees it, the same that `consort status` shows: a drawing, and lists that say all of it. */
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { getCluster, type ClusterInstance, type ClusterNode, type ClusterStatus } from "./api";
import { Facts } from "./facts";
import { bandwidth, bytes, count, latency, rate, span } from "./format";
import { key } from "./key";
import { layoutOf, pairsOf, shortHashes, slicesOf, slower, thickness, type Layout, type Pair, type Slice } from "./nodes";
import { usePoll } from "./poll";

const POLL_MS = 2000;
const HEAD_HEIGHT = 72; // of a box, above what it holds of models
const PART_HEIGHT = 30;
const MOST_PARTS = 3;
const FEW_LINKS = 6; // more are folded away, and drawn thinner
const OWNER = ", owner";

const STATES = {
  planning: "being planned",
  reserving: "reserves memory",
  preparing: "fetches what it needs",
  opening: "being opened",
  running: "running",
  failed: "cannot run",
};

function nameOf(status: ClusterStatus, id: string): string {
  return status.nodes.find((node) => node.id === id)?.name ?? id.slice(0, 8);
}

/** The name of a model, or of what is fetched of it, by the hash that it begins with. */
function modelOf(status: ClusterStatus, object: string): string {
  const sha = object.split("/")[0] ?? "";
  const instance = status.instances.find((one) => one.model[0] === sha);
  const models = status.nodes.flatMap((node) => node.models ?? []);
  return instance?.model[1] ?? models.find((model) => model.sha === sha)?.name ?? shortHashes(sha);
}

function usedOf(node: ClusterNode): number {
  return Math.max((node.memory_limit ?? 0) - (node.memory_free ?? 0), 0);
}

// ---- The drawing ----

/** How many letters fit, each about 0.6 of its height wide. */
function letters(width: number, size: number): number {
  return Math.max(Math.floor(width / (size * 0.6)), 2);
}

function fitting(text: string, most: number): string {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

function memoryText(node: ClusterNode, most: number): string {
  const limit = node.memory_limit ?? 0;
  const text = `${bytes(usedOf(node))} of ${bytes(limit)}`;
  if (node.state !== "up") return "down";
  return limit === 0 ? "up" : text.length <= most ? text : `${Math.round((100 * usedOf(node)) / limit)} % used`;
}

function Strip({ slice, x, y, width, height }: { slice: Slice; x: number; y: number; width: number; height: number }): JSX.Element {
  return (
    <>
      <rect class="rest" x={x} y={y} width={width} height={height} rx={2} />
      <rect
        class="held"
        x={x + slice.left * width}
        y={y + slice.top * height}
        width={(slice.right - slice.left) * width}
        height={(slice.bottom - slice.top) * height}
        rx={2}
      />
    </>
  );
}

interface Held {
  name: string;
  slice: Slice;
}

function heldBy(status: ClusterStatus, node: ClusterNode): Held[] {
  return status.instances.flatMap((instance) =>
    slicesOf(instance)
      .filter((slice) => slice.node === node.id)
      .map((slice) => ({ name: instance.model[1], slice })),
  );
}

function Box({ node, held, x, y, width, height }: { node: ClusterNode; held: Held[]; x: number; y: number; width: number; height: number }): JSX.Element {
  const inner = width - 24;
  const limit = node.memory_limit ?? 0;
  const used = usedOf(node);
  const up = node.state === "up";
  return (
    <g class={`node ${up ? "" : "down"} ${node.self ? "self" : ""}`} transform={`translate(${x - width / 2} ${y - height / 2})`}>
      <rect class="box" width={width} height={height} rx={10} />
      <text class="name" x={12} y={24}>
        {fitting(node.name, letters(inner, 15))}
      </text>
      <text x={12} y={42}>
        {memoryText(node, letters(inner, 12))}
      </text>
      {up && limit > 0 && (
        <>
          <rect class="rest" x={12} y={52} width={inner} height={6} rx={3} />
          <rect class="held" x={12} y={52} width={Math.min(used / limit, 1) * inner} height={6} rx={3} />
        </>
      )}
      {held.slice(0, MOST_PARTS).map(({ name, slice }, i) => (
        <g key={i} transform={`translate(12 ${HEAD_HEIGHT + i * PART_HEIGHT})`}>
          <text x={0} y={10}>
            {slice.owner ? `${fitting(name, letters(inner, 12) - OWNER.length)}${OWNER}` : fitting(name, letters(inner, 12))}
          </text>
          <Strip slice={slice} x={0} y={15} width={inner} height={8} />
        </g>
      ))}
    </g>
  );
}

/** A line that bends towards the middle, so that it passes between the boxes. */
function Line({ pair, layout, width, thin }: { pair: Pair; layout: Layout; width: number; thin: boolean }): JSX.Element | null {
  const a = layout.places[pair.a];
  const b = layout.places[pair.b];
  if (a === undefined || b === undefined) return null;
  const mid = { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
  const bend = { x: mid.x + (width / 2 - mid.x) * 0.5, y: mid.y + (layout.height / 2 - mid.y) * 0.5 };
  // Those that cross in the middle are written on before it.
  const t = layout.places.length > 3 && a.x !== b.x && a.y !== b.y ? 0.36 : 0.5;
  const at = (from: number, through: number, to: number): number => (1 - t) ** 2 * from + 2 * t * (1 - t) * through + t ** 2 * to;
  const speed = slower(pair);
  const x = at(a.x, bend.x, b.x);
  const y = at(a.y, bend.y, b.y);
  return (
    <g class="link">
      <path d={`M${a.x} ${a.y}Q${bend.x} ${bend.y} ${b.x} ${b.y}`} stroke-width={thickness(speed) * (thin ? 0.4 : 1)} />
      {layout.labels && (
        <>
          <text x={x} y={y - 9}>
            {speed > 0 ? bandwidth(speed) : "not measured"}
          </text>
          {pair.latencyUs > 0 && (
            <text x={x} y={y + 19}>
              {latency(pair.latencyUs)}
            </text>
          )}
        </>
      )}
    </g>
  );
}

function Drawing({ status }: { status: ClusterStatus }): JSX.Element {
  const frame = useRef<HTMLDivElement>(null);
  const width = useSignal(0);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => (width.value = Math.floor(entry?.contentRect.width ?? 0)));
    if (frame.current) watch.observe(frame.current);
    return () => watch.disconnect();
  }, []);
  const held = status.nodes.map((node) => heldBy(status, node));
  const parts = Math.min(Math.max(...held.map((list) => list.length), 0), MOST_PARTS);
  const boxHeight = HEAD_HEIGHT + parts * PART_HEIGHT;
  const layout = layoutOf(status.nodes.length, width.value, boxHeight);
  const pairs = pairsOf(status);
  const nodes = status.nodes.length === 1 ? "the one node" : `the ${status.nodes.length} nodes`;
  return (
    <div class="drawing" ref={frame}>
      {width.value > 0 && (
        <svg role="img" aria-label={`A drawing of ${nodes} and the links between them; the lists below say the same`} width={width.value} height={layout.height}>
          {pairs.map((pair) => (
            <Line key={`${pair.a} ${pair.b}`} pair={pair} layout={layout} width={width.value} thin={pairs.length > FEW_LINKS} />
          ))}
          {status.nodes.map((node, i) => (
            <Box key={node.id} node={node} held={held[i] ?? []} width={layout.boxWidth} height={boxHeight} x={layout.places[i]?.x ?? 0} y={layout.places[i]?.y ?? 0} />
          ))}
        </svg>
      )}
    </div>
  );
}

// ---- The lists ----

function NodeCard({ node }: { node: ClusterNode }): JSX.Element {
  const facts: [string, string][] = [];
  const address = node.addresses.find((one) => !one.includes("%"));
  if (node.memory_limit !== undefined) facts.push(["Memory", `${bytes(usedOf(node))} of ${bytes(node.memory_limit)}`]);
  if (node.bandwidth) facts.push(["Reads weights", bandwidth(node.bandwidth)]);
  if (node.load !== undefined) facts.push(["Load", `${Math.round(100 * node.load)} %`]);
  if (address !== undefined) facts.push(["Address", address]);
  if (node.version) facts.push(["Version", node.version]);
  if (node.models?.length) facts.push(["Models there", node.models.map((model) => model.name).join(", ")]);
  if (node.lost_ms !== undefined) facts.push(["Lost", `${span(node.lost_ms)} ago`]);
  return (
    <li class="card">
      <h4>
        <span class="ellipsis">{node.name}</span>
        <span class={`state ${node.state === "up" ? "open" : ""}`}>{node.self ? "this server" : node.state}</span>
      </h4>
      {node.reason && <p class="reason">{node.reason}</p>}
      <Facts facts={facts} />
    </li>
  );
}

function InstanceCard({ status, instance }: { status: ClusterStatus; instance: ClusterInstance }): JSX.Element {
  const facts: [string, string][] = [];
  if (instance.predicted > 0) facts.push(["Predicted", `${rate(instance.predicted)} tokens/s`]);
  if (instance.reached) facts.push(["Reached of late", `${rate(instance.reached)} tokens/s`]);
  if (instance.spec?.n_ctx) facts.push(["Context", `${count(instance.spec.n_ctx)} tokens`]);
  facts.push(["Requests", count(instance.requests)]);
  if (instance.recoveries > 0) facts.push(["Went on after a loss", `${count(instance.recoveries)} times`]);
  const running = instance.state === "running";
  return (
    <li class="card">
      <h4>
        <span class="ellipsis">{instance.model[1]}</span>
        <span class={`state ${running ? "open" : ""}`}>{instance.draining ? "ends when answers are done" : (STATES[instance.state] ?? instance.state)}</span>
      </h4>
      {!running && instance.reason && <p class="reason">{instance.reason}</p>}
      <ul class="slices" aria-label={`Nodes of ${instance.model[1]}`}>
        {slicesOf(instance).map((slice, rank) => (
          <li key={rank}>
            <span>
              <strong>{nameOf(status, slice.node)}</strong>
              {slice.owner && " (owner)"}
            </span>
            <span>{bytes(slice.bytes)}</span>
            {slice.text !== "" && (
              <>
                <span class="hint">{slice.text}</span>
                <svg class="strip" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
                  <Strip slice={slice} x={0} y={0} width={100} height={8} />
                </svg>
              </>
            )}
          </li>
        ))}
      </ul>
      <Facts facts={facts} />
    </li>
  );
}

function Links({ status, pairs }: { status: ClusterStatus; pairs: Pair[] }): JSX.Element {
  const cell = (speed: number): string => (speed > 0 ? bandwidth(speed) : "not measured");
  const table = (
    <div class="table" role="region" aria-label="Links" tabIndex={0}>
      <table>
        <thead>
          <tr>
            <th scope="col">Between</th>
            <th scope="col">One way</th>
            <th scope="col">There</th>
            <th scope="col">Back</th>
          </tr>
        </thead>
        <tbody>
          {pairs.map((pair) => (
            <tr key={`${pair.a} ${pair.b}`}>
              <th scope="row">
                {status.nodes[pair.a]?.name} and {status.nodes[pair.b]?.name}
              </th>
              <td>{pair.latencyUs > 0 ? latency(pair.latencyUs) : "not measured"}</td>
              <td>{cell(pair.there)}</td>
              <td>{cell(pair.back)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
  if (pairs.length <= FEW_LINKS) return table;
  return (
    <details>
      <summary>All {count(pairs.length)} links</summary>
      {table}
    </details>
  );
}

function Downloads({ status }: { status: ClusterStatus }): JSX.Element {
  return (
    <ul class="downloads">
      {status.transfers.map((one) => {
        const part = one.of > 0 ? one.done / one.of : 0;
        const text = `${nameOf(status, one.node)} fetches its part of ${modelOf(status, one.object)}`;
        return (
          <li key={`${one.node} ${one.object}`}>
            <span>{text}</span>
            <span>{Math.floor(100 * part)} %</span>
            <progress max={1} value={part} aria-label={text} />
          </li>
        );
      })}
    </ul>
  );
}

function Cluster({ status }: { status: ClusterStatus }): JSX.Element {
  const pairs = pairsOf(status);
  return (
    <section class="cluster" aria-labelledby="cluster">
      <h2 id="cluster">Cluster</h2>
      <Drawing status={status} />
      {status.problems.length > 0 && (
        <ul class="problems" aria-label="Problems">
          {status.problems.map((problem, i) => (
            <li key={i}>{shortHashes(problem.text)}</li>
          ))}
        </ul>
      )}
      <h3>Nodes</h3>
      <ul class="cards">
        {status.nodes.map((node) => (
          <NodeCard key={node.id} node={node} />
        ))}
      </ul>
      <h3>On several machines</h3>
      {status.instances.length === 0 && <p class="hint">Nothing yet: consort load MODEL opens a model on the nodes that compute it fastest.</p>}
      <ul class="cards">
        {status.instances.map((instance) => (
          <InstanceCard key={`${instance.node} ${instance.id}`} status={status} instance={instance} />
        ))}
      </ul>
      {status.transfers.length > 0 && (
        <>
          <h3>Downloads</h3>
          <Downloads status={status} />
        </>
      )}
      {pairs.length > 0 && (
        <>
          <h3>Links</h3>
          <Links status={status} pairs={pairs} />
        </>
      )}
    </section>
  );
}

export function ClusterView(): JSX.Element | null {
  const status = useSignal<ClusterStatus | null | undefined>(undefined); // null: none, undefined: not known yet
  const ask = async (): Promise<boolean> => {
    try {
      status.value = await getCluster();
    } catch {
      // The figures above tell it, and what was seen last stays.
    }
    return status.value !== null;
  };
  usePoll(POLL_MS, ask, key.value);
  if (status.value === undefined) return null;
  if (status.value === null)
    return (
      <p class="hint" id="no-cluster">
        This server is in no cluster. To make several machines one, begin with consort init on this one.
      </p>
    );
  return <Cluster status={status.value} />;
}
