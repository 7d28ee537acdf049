/** Parts of the page that need no browser. */
import assert from "node:assert/strict";
import test from "node:test";
import { bytes, rate, seconds, span } from "../src/format";
import { highlight } from "../src/highlight";
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
});
