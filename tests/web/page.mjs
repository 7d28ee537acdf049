// The page in a browser. Arguments: the browser, a server with the models demo and second, one that wants a key, one
// that computes the model demo with another node of its cluster, the key.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { report } from "../clients/report.mjs";
import { stand } from "./stand.mjs";

const require = createRequire(path.join(process.cwd(), "package.json"));
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [program, real, locked, joined, secret] = process.argv.slice(2);
const WAIT = { timeout: 90000 };
const PHONE = { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true };

const tap = report();
const browser = await chromium.launch({ executablePath: program });
const fake = await stand(real);
const foreign = []; // requests to anywhere but the servers here
const complaints = []; // errors that nobody expected
const origins = [real, locked, joined, fake.origin];

async function open(origin, options = {}) {
  const context = await browser.newContext({ acceptDownloads: true, ...options });
  context.setDefaultTimeout(WAIT.timeout);
  context.on("request", (request) => {
    const url = request.url();
    if (!/^(data|blob):/.test(url) && !origins.some((one) => url.startsWith(one + "/"))) foreign.push(url);
  });
  const page = await context.newPage();
  page.on("pageerror", (error) => complaints.push(error.stack));
  page.on("console", (message) => {
    if (message.type() === "error" && !/Failed to load resource/.test(message.text())) complaints.push(message.text());
  });
  await page.goto(`${origin}/`);
  await page.waitForSelector("#composer");
  // Without a model nothing is sent.
  if (origin !== locked) await page.locator("#model option", { hasText: "demo" }).waitFor({ state: "attached" });
  return page;
}

/** The browser has written so many conversations, text in one of them: they survive that the page goes. */
const kept = (page, number, text) =>
  page.waitForFunction(
    ([wanted, word]) =>
      new Promise((resolve, reject) => {
        const opening = indexedDB.open("consort");
        opening.onerror = () => reject(opening.error);
        opening.onsuccess = () => {
          const reading = opening.result.transaction("conversations").objectStore("conversations").getAll();
          reading.onerror = () => reject(reading.error);
          reading.onsuccess = () => {
            opening.result.close();
            resolve(reading.result.length === wanted && JSON.stringify(reading.result).includes(word));
          };
        };
      }),
    [number, text],
  );

const say = async (page, text) => {
  await page.fill("#composer", text);
  await page.press("#composer", "Enter");
};
const answerText = (page) => page.locator(".answer").last().innerText();
const shows = (page, text) => page.locator(".answer", { hasText: text }).last().waitFor();
const done = (page) => page.locator(".answer").last().locator(".figures", { hasText: "first after" }).waitFor();
const count = (page, selector) => page.locator(selector).count();

async function scene(name, act) {
  try {
    await act();
  } catch (error) {
    tap.check(false, name, error);
  }
}

/** What axe finds that keeps people out. */
async function barriers(page) {
  await page.evaluate(AXE);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.map((one) => `${one.impact} ${one.id}: ${one.nodes.map((node) => node.html.slice(0, 120)).join(" | ")}`);
}

const checkBarriers = async (page, name) => {
  const found = await barriers(page);
  tap.check(found.length === 0, `axe finds nothing: ${name}`, found);
};

// ---- A newcomer, and a real answer ----

await scene("a real answer", async () => {
  const page = await open(real);
  tap.check(await page.locator("h1").innerText() === "Ask your own server", "a newcomer is greeted");
  tap.check(await page.evaluate(() => document.activeElement?.id) === "composer", "and can write at once");
  await page.getByRole("button", { name: "What is consort?" }).click();
  await done(page);
  tap.check((await answerText(page)).includes("consort"), "an example is answered", await answerText(page));
  tap.check(/\d+ tokens\s+first after \d/.test(await answerText(page)), "with its figures", await answerText(page));
  tap.check((await page.title()) === "What is consort? · consort", "the title is the conversation's", await page.title());
  await page.waitForFunction(() => document.querySelector("[role=status]").textContent.includes("consort"));
  tap.check(true, "screen readers are told the answer");

  await page.selectOption("#model", "second");
  const request = page.waitForRequest("**/v1/chat/completions");
  await say(page, "Who are you?");
  const body = (await request).postDataJSON();
  tap.check(body.model === "second" && body.stream === true, "the model picker decides who answers", body);
  tap.check(body.messages.map((one) => one.role).join() === "user,assistant,user", "the history is sent", body);
  await page.locator(".answer").nth(1).locator(".figures", { hasText: "first after" }).waitFor();

  await page.getByRole("link", { name: "Server" }).click();
  await page.locator(".card", { hasText: "second" }).getByText("open", { exact: true }).waitFor();
  const figures = await page.locator(".figures-grid").innerText();
  tap.check(/KV cache\s+\d+ %/.test(figures) && /Up for\s+\d+ /.test(figures) && /\d [MG]iB taken\s+of .* for models; .* free of /.test(figures), "the server's figures", figures);
  const card = await page.locator(".card", { hasText: "demo" }).innerText();
  tap.check(/Answered\s+1\b/.test(card) && /Tokens written\s+[1-9]/.test(card) && /Context\s+512 tokens/.test(card) && /Memory\s+\d.*iB/.test(card), "a model's figures", card);
  await page.locator(".curve polyline").first().waitFor({ state: "attached" });
  tap.check(true, "rates are drawn");
  await page.context().close();
});

// ---- Streams: pieces, stop, retry, edit ----

await scene("streams", async () => {
  const page = await open(fake.origin);
  await say(page, "one");
  let asked = await fake.asked();
  await page.locator(".waiting").waitFor();
  asked.think("Let me see.");
  await page.locator(".reasoning", { hasText: "Thinking" }).waitFor();
  tap.check(!(await page.getByText("Let me see.").isVisible()), "reasoning is folded");
  asked.write("First piece");
  await shows(page, "First piece");
  tap.check(await page.locator(".answer[aria-busy=true]").count() === 1, "an answer shows while it comes in");
  asked.write(", second piece");
  await shows(page, "First piece, second piece");
  asked.end();
  await done(page);
  tap.check(/[\d.,]+ tokens\/s\s+5 tokens\s+first after/.test(await answerText(page)), "tokens a second", await answerText(page));
  await page.locator(".reasoning summary").click();
  tap.check(await page.getByText("Let me see.").isVisible(), "reasoning unfolds");

  await say(page, "two");
  asked = await fake.asked();
  asked.write("It goes on");
  await shows(page, "It goes on");
  await page.keyboard.press("Escape");
  await asked.gone;
  await shows(page, "Stopped.");
  tap.check((await answerText(page)).includes("It goes on"), "Escape stops, and what came stays");

  await page.getByRole("button", { name: "Answer again" }).click();
  asked = await fake.asked();
  tap.check(asked.body.messages.length === 3 && asked.body.messages[2].content === "two", "retry asks the same", asked.body);
  asked.write("Again");
  await shows(page, "Again");
  await page.getByRole("button", { name: "Stop" }).click();
  await asked.gone;
  await shows(page, "Stopped.");
  tap.check(await count(page, ".answer") === 2 && !(await page.locator(".messages").innerText()).includes("It goes on"), "and replaces the answer; the button stops");

  await page.getByRole("button", { name: "Edit and send again" }).first().click();
  await page.fill(".editor textarea", "another one");
  await page.getByRole("button", { name: "Send again", exact: true }).click();
  asked = await fake.asked();
  tap.check(asked.body.messages.length === 1 && asked.body.messages[0].content === "another one", "an edited message is sent", asked.body);
  asked.answer("Edited answer");
  await done(page);
  tap.check(await count(page, ".question") === 1, "and replaces what came after it");

  // In another window of the same browser.
  const other = await page.context().newPage();
  await other.goto(fake.origin);
  await other.locator(".sidebar li", { hasText: "one" }).waitFor();
  await page.getByRole("button", { name: "New chat" }).click();
  await say(page, "Seen elsewhere");
  (await fake.asked()).answer("Yes");
  await other.locator(".sidebar li", { hasText: "Seen elsewhere" }).waitFor();
  tap.check(true, "another window sees a new conversation");
  await page.context().close();
});

// ---- Markdown, and what a model must not be able to do ----

const MARKDOWN = `## Heading

**Bold** and \`code\` and [a link](https://example.org/x).

\`\`\`python
def f(x):
    return "<b>" # note
\`\`\`

| a | b |
|---|--:|
| 1 | 2 |

- [x] done
`;

const EVIL = `<img src=x onerror="window.hit = 1"><script>window.hit = 2</script>
<svg onload="window.hit = 3"></svg><iframe src="https://evil.example/"></iframe><style>body { display: none }</style>

[click](javascript:window.hit=4) ![picture](https://evil.example/pixel.png) <a href="javascript:window.hit=5" onclick="window.hit=6">x</a>

\`\`\`"><img src=x onerror=window.hit=7>
code
\`\`\`

<form action="https://evil.example/"><input name=a></form> <b onmouseover="window.hit=8">b</b> line<br>break <details open ontoggle="window.hit=9"><summary>s</summary></details>`;

await scene("Markdown", async () => {
  const page = await open(fake.origin);
  await say(page, "Markdown");
  (await fake.asked()).answer(MARKDOWN);
  await done(page);
  const answer = page.locator(".answer").last();
  for (const [selector, text] of [["h3", "Heading"], ["strong", "Bold"], ["p code", "code"], ["td.right", "2"], [".hl-k", "def"], [".hl-s", '"<b>"'], [".hl-c", "# note"]])
    tap.check((await answer.locator(selector).first().innerText()) === text, `Markdown: ${selector}`);
  const link = answer.locator("a");
  tap.check((await link.getAttribute("rel")) === "noopener noreferrer" && (await link.getAttribute("target")) === "_blank", "links open apart");
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await answer.getByRole("button", { name: "Copy", exact: true }).first().click();
  await answer.getByText("Copied").waitFor();
  tap.check((await page.evaluate(() => navigator.clipboard.readText())) === 'def f(x):\n    return "<b>" # note', "code is copied as it is");

  await say(page, "Evil");
  (await fake.asked()).answer(EVIL);
  await done(page);
  const last = page.locator(".answer").last();
  tap.check((await last.locator("img, script, svg:not(.icon), iframe, style, form, input, b").count()) === 0, "what is not plain Markdown is shown as text", await last.innerHTML());
  const bad = await last.evaluate((element) =>
    [...element.querySelectorAll(".markdown *")].flatMap((one) => [...one.attributes].filter((a) => a.name.startsWith("on") || a.name === "style" || /^\s*javascript:/i.test(a.value)).map((a) => a.name)),
  );
  tap.check(bad.length === 0, "no handlers, no styles, no script addresses", bad);
  tap.check((await answerText(page)).includes("<script>"), "a script is shown as its text");
  await last.locator("summary, .markdown p").first().hover();
  tap.check((await page.evaluate(() => window.hit)) === undefined, "nothing of it ran");

  const blocked = await page.evaluate(async () => {
    const tries = { html: () => (document.createElement("div").innerHTML = "<b>"), fetch: () => fetch("https://evil.example/") };
    const refused = [];
    for (const [name, act] of Object.entries(tries))
      try {
        await act();
      } catch {
        refused.push(name);
      }
    return refused;
  });
  tap.check(blocked.join() === "html,fetch", "the policy holds even against a script that ran", blocked);
  complaints.length = 0; // of that
  await page.context().close();
});

// ---- Settings ----

await scene("settings", async () => {
  const page = await open(fake.origin);
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel("System prompt").fill("Be brief.");
  await page.getByLabel("Temperature").fill("0.3");
  await page.getByLabel("Longest answer").fill("50");
  await page.getByLabel("Seed").fill("7");
  await page.getByText("More", { exact: true }).click();
  await page.getByLabel("Top k").fill("5");
  await page.getByLabel("Stop texts").fill("END\nSTOP");
  await page.getByLabel("Reasoning").selectOption("low");
  await page.getByRole("button", { name: "Use for new chats" }).click();
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  tap.check(true, "Escape closes the drawer");
  tap.check(await page.getByRole("button", { name: "Settings: 7 of your own" }).isVisible(), "the button tells what is set");
  for (const title of ["first", "second"]) {
    await page.getByRole("button", { name: "New chat" }).click();
    await say(page, title);
    const asked = await fake.asked();
    const { temperature, max_tokens, seed, top_k, stop, reasoning_effort, messages, top_p } = asked.body;
    tap.check(
      temperature === 0.3 && max_tokens === 50 && seed === 7 && top_k === 5 && stop.join() === "END,STOP" && reasoning_effort === "low" &&
        top_p === undefined && messages[0].role === "system" && messages[0].content === "Be brief.",
      `settings reach the ${title} request`,
      asked.body,
    );
    asked.write("Cut");
    asked.end("length");
    await shows(page, "longest length");
  }
  await page.getByRole("button", { name: /Settings/ }).click();
  await page.getByRole("button", { name: "Reset" }).click();
  await page.keyboard.press("Escape");
  await say(page, "third");
  const asked = await fake.asked();
  tap.check(asked.body.temperature === undefined && asked.body.messages[0].role === "user", "reset takes them back", asked.body);
  asked.answer("Done");
  await done(page);

  const before = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.getByRole("button", { name: /^Colours/ }).click();
  await page.getByRole("button", { name: /^Colours: light/ }).click();
  const after = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  tap.check(before !== after, "the colours can be switched", [before, after]);
  await page.reload();
  await page.waitForSelector("#composer");
  tap.check((await page.evaluate(() => document.documentElement.dataset.theme)) === "dark", "and stay switched");
  await page.context().close();
});

// ---- Conversations ----

await scene("conversations", async () => {
  const page = await open(fake.origin);
  await say(page, "Remember me");
  (await fake.asked()).answer("I shall.");
  await done(page);
  await page.getByRole("button", { name: "New chat" }).click();
  await say(page, "The other");
  (await fake.asked()).answer("Fine.");
  await done(page);
  await kept(page, 2, "Fine.");
  await page.reload();
  await shows(page, "Fine.");
  tap.check((await count(page, ".sidebar li")) === 2, "conversations survive a reload, and the one that was open is open");
  await page.getByRole("link", { name: "Remember me" }).click();
  await shows(page, "I shall.");
  const menu = page.getByRole("button", { name: /^Rename, export/ });
  await menu.click();
  await page.getByRole("button", { name: "Rename…" }).click();
  await page.getByLabel("Name", { exact: true }).fill("A better name");
  await page.keyboard.press("Enter");
  await page.getByRole("link", { name: "A better name" }).waitFor();
  await page.getByRole("dialog").waitFor({ state: "detached" });
  tap.check(true, "a conversation is renamed");
  const download = page.waitForEvent("download");
  await menu.click();
  await page.getByRole("button", { name: "Export as Markdown" }).click();
  const file = await download;
  const text = readFileSync(await file.path(), "utf8");
  tap.check(file.suggestedFilename() === "A-better-name.md" && text.includes("# A better name") && text.includes("I shall."), "and exported", text);
  await menu.click();
  await page.getByRole("button", { name: "Delete…" }).click();
  await page.getByRole("button", { name: "Delete", exact: true }).click();
  await page.getByRole("link", { name: "A better name" }).waitFor({ state: "detached" });
  await kept(page, 1, "The other");
  await page.reload();
  await page.getByRole("link", { name: "The other" }).waitFor();
  tap.check((await count(page, ".sidebar li")) === 1, "and deleted");
  await page.context().close();
});

// ---- The key ----

await scene("the key", async () => {
  const page = await open(locked);
  await page.getByRole("heading", { name: "This server needs a key" }).waitFor();
  await checkBarriers(page, "the question for the key");
  await page.getByLabel("Key", { exact: true }).fill("wrong");
  await page.keyboard.press("Enter");
  await page.getByText("does not know this key").waitFor();
  tap.check(true, "a wrong key is told");
  await page.getByLabel("Key", { exact: true }).fill(secret);
  await page.keyboard.press("Enter");
  await page.locator("#model option", { hasText: "demo" }).waitFor({ state: "attached" });
  await say(page, "What is consort?");
  await done(page);
  tap.check((await answerText(page)).includes("consort"), "with the key there are answers");
  const kept = await page.evaluate(() => [sessionStorage.getItem("consort.key"), localStorage.getItem("consort.key")]);
  tap.check(kept[0] === secret && kept[1] === null, "the key is kept for the window only", kept);
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByRole("button", { name: "Forget the key" }).click();
  await page.getByLabel("Key", { exact: true }).fill(secret);
  await page.getByLabel("Remember it").check();
  await page.getByRole("button", { name: "Use this key" }).click();
  await page.waitForFunction(() => localStorage.getItem("consort.key") !== null);
  tap.check((await page.evaluate(() => sessionStorage.getItem("consort.key"))) === null, "or remembered where that is asked for");
  await page.context().close();
});

// ---- Errors ----

await scene("errors", async () => {
  const page = await open(fake.origin);
  const last = page.locator(".answer").last();
  await say(page, "full");
  (await fake.asked()).refuse(503, "the queue is full: 64 requests wait", { "Retry-After": "3" });
  await shows(page, "The queue is full: 64 requests wait. Try again in 3 seconds.");
  tap.check(true, "a full queue is told with the time to wait");
  await last.getByRole("button", { name: "Retry" }).click();
  (await fake.asked()).refuse(400, "the prompt has 900 tokens, the context 512", {}, "context_length_exceeded");
  await shows(page, "900 tokens, the context 512. Start a new chat");
  tap.check(true, "so is a prompt that is too long, with what to do");
  await last.getByRole("button", { name: "Retry" }).click();
  let asked = await fake.asked();
  asked.write("Half of it");
  await shows(page, "Half of it");
  asked.break();
  await shows(page, "connection broke");
  tap.check((await answerText(page)).includes("Half of it"), "what came before the connection broke stays");
  await last.getByRole("button", { name: "Retry" }).click();
  asked = await fake.asked();
  asked.write("Some");
  asked.event({ error: { message: "the model ran out of memory" } });
  asked.response.end();
  await shows(page, "The model ran out of memory.");
  tap.check(true, "an error within the stream is told");
  await checkBarriers(page, "an error");
  await page.route("**/v1/chat/completions", (route) => route.abort("connectionrefused"));
  await last.getByRole("button", { name: "Retry" }).click();
  await shows(page, "The server does not answer.");
  tap.check(true, "a server that is gone is told");
  await page.unroute("**/v1/chat/completions");
  await last.getByRole("button", { name: "Retry" }).click();
  asked = await fake.asked();
  tap.check(asked.body.messages.length === 1, "failures leave nothing in the history", asked.body);
  asked.answer("Well again");
  await done(page);
  tap.check((await count(page, ".answer .error")) === 0, "and are forgotten when it works again");
  await page.context().close();
});

// ---- Keyboard, phone, colours ----

await scene("keyboard", async () => {
  const page = await open(fake.origin);
  const here = () =>
    page.evaluate(() => {
      const element = document.activeElement;
      return element === document.body ? "" : (element.getAttribute("aria-label") ?? element.textContent);
    });
  // From the end, the page itself comes first.
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  tap.check((await here()) === "Skip to the message", "the first stop skips to the message", await here());
  await page.keyboard.press("Enter");
  await page.keyboard.type("two");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("lines");
  tap.check((await page.inputValue("#composer")) === "two\nlines", "Shift and Enter begin a line");
  await page.keyboard.press("Enter");
  (await fake.asked()).answer("Read aloud.\n\nTwice.");
  await done(page);
  tap.check((await page.inputValue("#composer")) === "" && (await page.evaluate(() => document.activeElement.id)) === "composer", "Enter sends, and the focus stays");
  const seen = [];
  for (let i = 0; i < 25 && !seen.includes("Message"); i++) {
    await page.keyboard.press("Tab");
    const id = await page.evaluate(() => document.activeElement.id);
    seen.push(id === "composer" ? "Message" : await here());
    const outlined = await page.evaluate(() => {
      const element = document.activeElement;
      return element.id === "composer" || element === document.body || getComputedStyle(element).outlineStyle !== "none";
    });
    if (!outlined) tap.check(false, "the focus is visible", await here());
  }
  const order = ["New chat", "two lines", "Server", "Settings", "Copy", "Edit and send again", "Answer again", "Message"];
  const places = order.map((name) => seen.findIndex((one) => one?.includes(name)));
  tap.check(places.every((place, i) => place >= 0 && (i === 0 || place > places[i - 1])), "everything is reached, in order", seen);
  await page.getByRole("button", { name: "Settings" }).focus();
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  tap.check((await here()) === "Settings", "a closed drawer gives the focus back", await here());
  await page.context().close();
});

await scene("phone", async () => {
  const page = await open(fake.origin, { ...PHONE, reducedMotion: "reduce" });
  const wide = () => page.evaluate(() => document.documentElement.scrollWidth > innerWidth || document.querySelector(".messages, .server, .welcome").scrollWidth > innerWidth);
  tap.check(!(await wide()), "phone: the beginning fits");
  await say(page, "A" + "a".repeat(400));
  const asked = await fake.asked();
  await page.locator(".dots i").first().waitFor();
  tap.check((await page.evaluate(() => getComputedStyle(document.querySelector(".dots i")).animationName)) === "none", "nothing moves for who wants less motion");
  asked.answer(`${MARKDOWN}\n\`\`\`\n${"wide ".repeat(200)}\n\`\`\`\n\n|${"column |".repeat(20)}\n|${"---|".repeat(20)}\n|${"cell |".repeat(20)}\n\n${"x".repeat(400)}`);
  await done(page);
  tap.check(!(await wide()), "phone: long words, code and tables fit");
  await checkBarriers(page, "a conversation on a phone");
  tap.check(!(await page.getByRole("link", { name: "Server" }).isVisible()), "phone: the list is closed");
  await page.getByRole("button", { name: /^Open the list/ }).click();
  await page.getByRole("link", { name: "Server" }).waitFor();
  await checkBarriers(page, "the list on a phone");
  await page.getByRole("link", { name: "Server" }).click();
  await page.locator(".card").first().waitFor();
  tap.check(!(await wide()) && !(await page.getByRole("link", { name: "consort" }).isVisible()), "phone: the server fits, and the list closed itself");
  await page.context().close();
});

for (const colorScheme of ["light", "dark"])
  await scene(colorScheme, async () => {
    const page = await open(fake.origin, { colorScheme });
    await checkBarriers(page, `the beginning, ${colorScheme}`);
    await say(page, "Markdown");
    const asked = await fake.asked();
    asked.think("Hm.");
    asked.answer(MARKDOWN);
    await done(page);
    await page.locator(".reasoning summary").click();
    await checkBarriers(page, `a conversation, ${colorScheme}`);
    await page.getByRole("button", { name: /^Rename, export/ }).click();
    await checkBarriers(page, `the menu, ${colorScheme}`);
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByText("More", { exact: true }).click();
    await checkBarriers(page, `the drawer, ${colorScheme}`);
    await page.keyboard.press("Escape");
    await page.getByRole("link", { name: "Server" }).click();
    await page.locator(".card").first().waitFor();
    await checkBarriers(page, `the server, ${colorScheme}`);
    await page.context().close();
  });

// ---- The cluster ----

const CLUSTER = "**/consort/cluster";
const evil = '<img src=x onerror="window.hit = 1">';

/** A status with as many nodes, the last one down, and all that a user should know. */
function statusOf(n) {
  const sha = "0123456789abcdef".repeat(4);
  const ids = Array.from({ length: n }, (_, i) => `id${i}`);
  return {
    nodes: ids.map((id, i) =>
      i === n - 1
        ? { id, name: evil, state: "down", self: false, addresses: [], reason: `it was silent ${evil}`, lost_ms: 61000 }
        : { id, name: `a-node-with-a-long-name-${i}`, state: "up", self: i === 0, addresses: ["10.0.0.1:4001"], memory_limit: 64e9, memory_free: 24e9, bandwidth: 31e9, load: 0.35, models: [{ sha, name: `big ${evil}` }] },
    ),
    links: ids.slice(0, -1).flatMap((from) => ids.slice(0, -1).map((to) => ({ from, to, latency_us: 80, bandwidth: 1.2e9 }))),
    instances: [{ id: 1, model: [sha, `big ${evil}`, 1], state: "preparing", draining: false, requests: 0, recoveries: 0, owner: 0, members: [["id0", 1e9, sha]], spec: "nonsense", predicted: 12.3, reached: 11.1, reason: `waits ${evil}`, node: "id0" }],
    transfers: [{ node: "id1", object: `${sha}/0-3.0.1`, done: 4, of: 10 }],
    problems: [{ kind: "refused", text: `${evil} at 10.0.0.9 cannot take part: it has version 0.1, this node 0.2` }],
  };
}

const serverView = async (page) => {
  await page.evaluate(() => (location.hash = "#/server"));
  await page.locator(".figures-grid").waitFor();
};

await scene("no cluster", async () => {
  const page = await open(real);
  await serverView(page);
  await page.getByText("in no cluster").waitFor();
  tap.check((await page.locator("#no-cluster").innerText()).includes("consort init") && (await count(page, ".cluster")) === 0, "who is in no cluster learns how to make one");
  await page.context().close();
});

await scene("the cluster", async () => {
  const page = await open(joined);
  await serverView(page);
  const part = (heading, text) => page.locator(".cluster .card", { has: page.locator("h4 .ellipsis").getByText(heading, { exact: true }) }).filter({ hasText: text });
  await part("a", "this server").waitFor();
  await part("b", "up").waitFor();
  const node = await part("b", "up").innerText();
  tap.check(/Memory\s+\d.*iB of \d.*iB/.test(node) && /Load\s+\d+ %/.test(node) && /Address\s+127\.0\.0\.1:\d+/.test(node), "each node with its memory, load and address", node);
  const instance = part("demo", "running");
  await instance.waitFor();
  const slices = await instance.locator(".slices li").allInnerTexts();
  const ranges = slices.map((text) => /layers? (\d+)(?:–(\d+))? of (\d+)/.exec(text)?.slice(1).map(Number) ?? []);
  const [first, last] = ranges;
  tap.check(slices.length === 2 && first[0] === 1 && last[0] === (first[1] || 1) + 1 && (last[1] || last[0]) === last[2], "which node has which layers", slices);
  tap.check(slices.filter((text) => text.includes("(owner)")).length === 1 && slices.map((text) => text[0]).sort().join() === "a,b", "one of them owns the model", slices);
  await page.locator(".drawing .link text", { hasText: "B/s" }).waitFor();
  await page.locator(".cluster tbody tr", { hasText: /a and b.*\d [µm]s.*B\/s/s }).waitFor();
  tap.check((await count(page, ".drawing .node")) === 2 && (await count(page, ".drawing .node .held")) === 4, "nodes, links and slices are drawn");
  const region = page.getByRole("region", { name: "Links" });
  await region.focus();
  tap.check(await region.evaluate((element) => element === document.activeElement), "the keyboard reaches the table of links");
  await checkBarriers(page, "the cluster");

  let asked = 0;
  page.on("request", (request) => (asked += request.url().endsWith("/consort/cluster") ? 1 : 0));
  await page.waitForRequest(CLUSTER);
  await page.waitForRequest(CLUSTER);
  tap.check(asked >= 2, "it is asked for again and again");
  const look = (hidden) =>
    page.evaluate((value) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => value });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
  await look(true);
  await page.waitForTimeout(300); // what was under way
  asked = 0;
  await page.waitForTimeout(2500);
  tap.check(asked === 0, "not while nobody sees it", asked);
  const again = page.waitForRequest(CLUSTER);
  await look(false);
  await again;
  tap.check(true, "and at once when somebody does");
  await page.context().close();
});

await scene("a strange cluster", async () => {
  for (const [options, n] of [[{ colorScheme: "light" }, 4], [{ colorScheme: "dark" }, 16], [PHONE, 5]]) {
    const page = await open(fake.origin, options);
    await page.route(CLUSTER, (route) => route.fulfill({ json: statusOf(n) }));
    await serverView(page);
    const text = async (selector) => page.locator(selector).innerText();
    await page.locator(".cluster").waitFor();
    const nodes = await page.locator(".cluster .cards").first().innerText();
    tap.check(nodes.includes(evil) && nodes.includes(`silent ${evil}`) && /Lost\s+1 min 1 s ago/.test(nodes), `${n} nodes: why one is down`, nodes);
    tap.check((await text(".problems")).includes("version 0.1"), `${n} nodes: who is not accepted, and why`);
    tap.check(/fetches its part of big .*\s40 %/s.test(await text(".downloads")), `${n} nodes: downloads`, await text(".downloads"));
    tap.check((await count(page, ".drawing .node")) === n && (await count(page, ".drawing .link")) === ((n - 1) * (n - 2)) / 2, `${n} nodes are drawn with their links`);
    tap.check((await count(page, ".cluster img")) === 0 && (await page.evaluate(() => window.hit)) === undefined, `${n} nodes: names are text`);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth || document.querySelector(".server").scrollWidth > document.querySelector(".server").clientWidth);
    tap.check(!wide, `${n} nodes fit`);
    await checkBarriers(page, `a cluster of ${n}`);
    await page.context().close();
  }
});

tap.check(foreign.length === 0, "no request went anywhere but to the server", foreign);
tap.check(complaints.length === 0, "the browser had nothing to complain about", complaints);
await browser.close();
await fake.close();
tap.end();
