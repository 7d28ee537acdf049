/** What the status of the cluster means for a picture of it: links by pairs, slices by ranks, and where things stand. */
import type { ClusterInstance, ClusterStatus } from "./api";

/** A link between two nodes, by their places in the list. */
export interface Pair {
  a: number;
  b: number;
  latencyUs: number; // one way, the longer one
  there: number; // bytes a second from a to b; 0: not measured
  back: number;
}

export function pairsOf(status: ClusterStatus): Pair[] {
  const place = new Map(status.nodes.map((node, i) => [node.id, i]));
  const pairs = new Map<string, Pair>();
  for (const link of status.links) {
    const from = place.get(link.from);
    const to = place.get(link.to);
    if (from === undefined || to === undefined || from === to) continue;
    const [a, b] = from < to ? [from, to] : [to, from];
    const pair = pairs.get(`${a} ${b}`) ?? { a, b, latencyUs: 0, there: 0, back: 0 };
    pair.latencyUs = Math.max(pair.latencyUs, link.latency_us);
    if (from === a) pair.there = link.bandwidth;
    else pair.back = link.bandwidth;
    pairs.set(`${a} ${b}`, pair);
  }
  return [...pairs.values()].sort((x, y) => x.a - y.a || x.b - y.b);
}

/** Of both directions the slower one that was measured. */
export function slower(pair: Pair): number {
  return pair.there > 0 && pair.back > 0 ? Math.min(pair.there, pair.back) : Math.max(pair.there, pair.back);
}

/** From 1.5 for what is slow to 8 for what is fast: ten times the bandwidth is 2 more. */
export function thickness(bandwidth: number): number {
  return bandwidth > 0 ? Math.min(Math.max(2 + 2 * Math.log10(bandwidth / 1e8), 1.5), 8) : 1.5;
}

/** What a node holds of a model. left to right are its layers, top to bottom its part of each, all from 0 to 1. */
export interface Slice {
  node: string;
  bytes: number;
  owner: boolean;
  text: string; // "" where the placement is not known
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/** One for each rank. Ranks are numbered stage by stage, and shard by shard within one. */
export function slicesOf(instance: ClusterInstance): Slice[] {
  const told = instance.spec?.stages; // by another node, and read by none on the way
  const stages = Array.isArray(told) ? told : [];
  const layers = stages.at(-1)?.end ?? 0;
  const parts = stages.flatMap(({ first, end, shares }) => {
    const whole = shares.reduce((sum, share) => sum + share, 0) || shares.length;
    let above = 0;
    return shares.map((share, i) => {
      const part = (share || 1) / whole;
      const top = above;
      above += part;
      const all = first === 0 && end === layers;
      const range = all ? "all layers" : first + 1 === end ? `layer ${end} of ${layers}` : `layers ${first + 1}–${end} of ${layers}`;
      const text = shares.length === 1 ? range : `shard ${i + 1} of ${shares.length} (${Math.round(100 * part)} %) of ${all ? range : `layers ${first + 1}–${end}`}`;
      return { text, left: first / layers, right: end / layers, top, bottom: above };
    });
  });
  const known = parts.length === instance.members.length;
  return instance.members.map(([node, bytes], rank) => {
    const part = (known && parts[rank]) || { text: "", left: 0, right: 0, top: 0, bottom: 0 };
    return { node, bytes, owner: rank === instance.owner, ...part };
  });
}

/** Places of boxes on a drawing of that width, in rows that are wide links apart. */
export interface Layout {
  boxWidth: number;
  height: number;
  places: { x: number; y: number }[]; // centres
  labels: boolean; // there is room to write on the links
}

const LEAST_WIDTH = 96; // of a box
const LEAST_GAP = 24;
const MOST_WIDTH = 208;
const WIDE = 560;
const ROW_GAP = 88;
const EDGE = 4;

export function layoutOf(count: number, width: number, boxHeight: number): Layout {
  const room = Math.max(Math.floor((width - 2 * EDGE + LEAST_GAP) / (LEAST_WIDTH + LEAST_GAP)), 1);
  const columns = Math.min(count <= 2 ? count : Math.ceil(count / 2), width < WIDE ? 2 : room);
  const rows = Math.ceil(count / Math.max(columns, 1));
  const gap = columns > 2 ? LEAST_GAP : 84;
  const boxWidth = Math.min((width - 2 * EDGE - (columns - 1) * gap) / Math.max(columns, 1), MOST_WIDTH);
  const pitch = Math.min(columns > 1 ? (width - 2 * EDGE - boxWidth) / (columns - 1) : 0, boxWidth + 280);
  const places = Array.from({ length: count }, (_, i) => {
    const row = Math.floor(i / columns);
    const inRow = Math.min(columns, count - row * columns);
    return {
      x: width / 2 + ((i % columns) - (inRow - 1) / 2) * pitch,
      y: EDGE + boxHeight / 2 + row * (boxHeight + ROW_GAP),
    };
  });
  return {
    boxWidth,
    height: 2 * EDGE + rows * boxHeight + (rows - 1) * ROW_GAP,
    places,
    labels: count <= 3 || (count === 4 && width >= WIDE),
  };
}

/** Shorter names for what is named by a hash. */
export function shortHashes(text: string): string {
  return text.replace(/\b([0-9a-f]{12})[0-9a-f]{52}\b/g, "$1…");
}
