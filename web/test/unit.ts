/** Parts of the page that need no browser. */
import assert from "node:assert/strict";
import test from "node:test";
import type { ClusterInstance, ClusterStatus } from "../src/api";
import { bandwidth, bytes, latency, rate, seconds, span } from "../src/format";
import { highlight } from "../src/highlight";
import { layoutOf, pairsOf, shortHashes, slicesOf, slower, thickness } from "../src/nodes";
import { asMarkdown, titleOf, type Conversation } from "../src/records";
import { requestFields, settingsChanged } from "../src/settings";
import { EventParser } from "../src/sse";

const STREAM = ': ping\n\ndata: {"a":1}\n\ndata:two\r\n\r\nevent: x\ndata: line 1\ndata: line 2\n\ndata: [DONE]\n\ndata: cut';
const EVENTS = ['{"a":1}', "two", "line 1\nline 2", "[DONE]"];

test("events are the same wherever the stream is cut", () => {
  for (let cut = 0; cut <= STREAM.length; cut++) {
    const parser = new EventParser();
    assert.deepEqual([...parser.feed(STREAM.slice(0, cut)), ...parser.feed(STREAM.slice(cut))], EVENTS);
  }
  const parser = new EventParser();
  assert.deepEqual([...STREAM].flatMap((letter) => parser.feed(letter)), EVENTS);
});

test("settings become fields of the request", () => {
  const settings = { system: "Be brief.", effort: "", stop: "END\n\nstop", numbers: { temperature: 0 } };
  assert.deepEqual(requestFields(settings), { temperature: 0, stop: ["END", "stop"] });
  assert.deepEqual(requestFields({ system: "", effort: "low", stop: "", numbers: {} }), { reasoning_effort: "low" });
  assert.equal(settingsChanged(settings), 3);
});

test("a title is the first words", () => {
  assert.equal(titleOf("  What is\n consort? "), "What is consort?");
  const long = titleOf("word ".repeat(30));
  assert.ok(long.length <= 49 && long.endsWith("word…"), long);
  assert.equal(titleOf("x".repeat(60)).length, 49);
});

test("a conversation as Markdown", () => {
  const conversation: Conversation = {
    id: "1",
    title: "Hello",
    model: "demo",
    created: 0,
    changed: 0,
    settings: { system: "Be kind.", effort: "", stop: "", numbers: {} },
    messages: [
      { role: "user", content: "Hi" },
      { role: "assistant", content: "Hello.", model: "demo" },
    ],
  };
  assert.equal(asMarkdown(conversation), "# Hello\n\n**System**\n\nBe kind.\n\n**You**\n\nHi\n\n**demo**\n\nHello.\n");
});

test("colours leave the code as it is, and escape it", () => {
  const code = 'if (a < 1) { s = "x // <b>"; } // <script>';
  const html = highlight(code, "C") ?? "";
  assert.equal(html.replace(/<[^>]*>/g, "").replace(/&#(\d+);/g, (_, n) => String.fromCharCode(Number(n))), code);
  assert.match(html, /<span class="hl-s">"x \/\/ &#60;b&#62;"<\/span>/);
  assert.match(html, /<span class="hl-c">\/\/ &#60;script&#62;<\/span>/);
  assert.equal(highlight("x", "klingon"), null);
});

test("numbers", () => {
  assert.deepEqual([bytes(0), bytes(1536), bytes(25e9)], ["0 B", "1.5 KiB", "23.3 GiB"]);
  assert.deepEqual([rate(3.14), rate(1234.5)], ["3.1", "1,235"]);
  assert.deepEqual([seconds(0.2), seconds(250), seconds(999), seconds(12345)], ["1 ms", "250 ms", "1.0 s", "12.3 s"]);
  assert.deepEqual([span(0), span(61000), span(93784000)], ["0 s", "1 min 1 s", "1 d 2 h"]);
  assert.deepEqual([bandwidth(125e6), bandwidth(1.2e9), bandwidth(31.4e9), bandwidth(250e9)], ["125 MB/s", "1.20 GB/s", "31.4 GB/s", "250 GB/s"]);
  assert.deepEqual([latency(0.2), latency(82.4), latency(1500), latency(25000)], ["1 µs", "82 µs", "1.5 ms", "25 ms"]);
});

function clusterOf(names: string[], links: [number, number, number, number][]): ClusterStatus {
  const nodes = names.map((name, i) => ({ id: `id${i}`, name, state: "up" as const, self: i === 0, addresses: [] }));
  return {
    nodes,
    links: links.map(([from, to, latency_us, bandwidth]) => ({ from: `id${from}`, to: `id${to}`, latency_us, bandwidth })),
    instances: [],
    transfers: [],
    problems: [],
  };
}

test("links of both directions are one, and those of nodes that left are none", () => {
  const status = clusterOf(["a", "b", "c"], [[2, 0, 90, 3e9], [1, 0, 80, 1e9], [0, 1, 70, 2e9], [1, 7, 1, 1], [1, 1, 1, 1]]);
  const pairs = pairsOf(status);
  assert.deepEqual(pairs, [
    { a: 0, b: 1, latencyUs: 80, there: 2e9, back: 1e9 },
    { a: 0, b: 2, latencyUs: 90, there: 0, back: 3e9 },
  ]);
  assert.deepEqual(pairs.map(slower), [1e9, 3e9]);
  assert.deepEqual([0, 1e6, 1e8, 1e9, 1e12].map(thickness), [1.5, 1.5, 2, 4, 8]);
});

function placed(stages: { first: number; end: number; shares: number[] }[], members: number): ClusterInstance {
  return {
    id: 1,
    model: ["sha", "big", 1],
    state: "running",
    draining: false,
    requests: 0,
    recoveries: 0,
    owner: members - 1,
    members: Array.from({ length: members }, (_, i) => [`id${i}`, 100, "sha"]),
    spec: { stages },
    predicted: 0,
    reason: "",
    node: "id0",
  };
}

test("each rank has its layers and its shard", () => {
  const texts = (one: ClusterInstance): string[] => slicesOf(one).map((slice) => slice.text);
  const whole = [{ first: 0, end: 6, shares: [1] }];
  assert.deepEqual(texts(placed(whole, 1)), ["all layers"]);
  const pipeline = slicesOf(placed([{ first: 0, end: 4, shares: [1] }, { first: 4, end: 5, shares: [1] }, { first: 5, end: 8, shares: [1] }], 3));
  assert.deepEqual(pipeline.map((slice) => slice.text), ["layers 1–4 of 8", "layer 5 of 8", "layers 6–8 of 8"]);
  assert.deepEqual(pipeline.map((slice) => [slice.left, slice.right, slice.owner]), [[0, 0.5, false], [0.5, 0.625, false], [0.625, 1, true]]);
  const tensor = slicesOf(placed([{ first: 0, end: 6, shares: [3, 1] }], 2));
  assert.deepEqual(tensor.map((slice) => slice.text), ["shard 1 of 2 (75 %) of all layers", "shard 2 of 2 (25 %) of all layers"]);
  assert.deepEqual(tensor.map((slice) => [slice.top, slice.bottom]), [[0, 0.75], [0.75, 1]]);
  assert.deepEqual(texts(placed([{ first: 0, end: 2, shares: [0, 0] }, { first: 2, end: 3, shares: [1] }], 3)), ["shard 1 of 2 (50 %) of layers 1–2", "shard 2 of 2 (50 %) of layers 1–2", "layer 3 of 3"]);
  assert.deepEqual(texts(placed(whole, 2)), ["", ""], "a placement of another number of ranks is not known");
});

test("boxes do not overlap, and stay on the drawing", () => {
  for (const width of [288, 328, 559, 560, 700, 992])
    for (let n = 1; n <= 16; n++) {
      const { places, boxWidth, height } = layoutOf(n, width, 102);
      assert.equal(places.length, n);
      places.forEach((one, i) => {
        assert.ok(one.x - boxWidth / 2 >= 0 && one.x + boxWidth / 2 <= width && one.y >= 51 && one.y + 51 <= height, `${n} at ${width}`);
        for (const other of places.slice(0, i))
          assert.ok(Math.abs(one.x - other.x) >= boxWidth + 16 || Math.abs(one.y - other.y) > 102, `${n} at ${width}`);
      });
    }
});

test("hashes are cut", () => {
  assert.equal(shortHashes(`only a has ${"0123456789abcdef".repeat(4)}/0-3.0.1`), "only a has 0123456789ab…/0-3.0.1");
});
