// A stand-in for the server: its page and its models, but answers that a test writes, piece by piece.
import http from "node:http";

const chunk = (delta, finish = null) => ({ choices: [{ index: 0, delta, finish_reason: finish }] });
const USAGE = { choices: [], usage: { prompt_tokens: 7, completion_tokens: 5 } };
const PATIENCE_MS = 90000; // then the page has failed

/** One request for an answer. */
class Asked {
  constructor(body, response) {
    this.body = JSON.parse(body);
    this.response = response;
    this.gone = new Promise((resolve) => response.on("close", resolve));
  }

  refuse(status, message, headers = {}, code = null) {
    this.response.writeHead(status, { "Content-Type": "application/json", ...headers });
    this.response.end(JSON.stringify({ error: { message, code } }));
  }

  event(data) {
    if (!this.response.headersSent) this.response.writeHead(200, { "Content-Type": "text/event-stream" });
    this.response.write(`data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`);
  }

  write(content) {
    this.event(chunk({ content }));
  }

  think(text) {
    this.event(chunk({ reasoning_content: text }));
  }

  end(finish = "stop") {
    this.event(chunk({}, finish));
    this.event(USAGE);
    this.event("[DONE]");
    this.response.end();
  }

  answer(content) {
    this.write(content);
    this.end();
  }

  break() {
    this.response.destroy();
  }
}

async function copy(origin, request, response) {
  const got = await fetch(origin + request.url, { headers: { "Accept-Encoding": "identity" } });
  const headers = {};
  for (const name of ["content-type", "content-security-policy"])
    if (got.headers.has(name)) headers[name] = got.headers.get(name);
  response.writeHead(got.status, headers);
  response.end(Buffer.from(await got.arrayBuffer()));
}

/** Listens; what is not a question for an answer comes from the server at origin. */
export async function stand(origin) {
  const waiting = [];
  const takers = [];
  const server = http.createServer(async (request, response) => {
    if (request.url !== "/v1/chat/completions") return copy(origin, request, response);
    let body = "";
    for await (const part of request) body += part;
    const asked = new Asked(body, response);
    const taker = takers.shift();
    if (taker) taker(asked);
    else waiting.push(asked);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    origin: `http://127.0.0.1:${server.address().port}`,
    /** The next request for an answer. */
    asked: () =>
      new Promise((resolve, reject) => {
        if (waiting.length) return resolve(waiting.shift());
        takers.push(resolve);
        setTimeout(() => reject(new Error("no answer was asked for")), PATIENCE_MS).unref();
      }),
    close: () => {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}
