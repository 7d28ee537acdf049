#!/usr/bin/env python3
"""OpenAI's API over a live server with the demo model: to the byte where clients depend on it."""
import base64
import json
import re
import signal
import socket
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import server  # noqa: E402
import tap  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
QUESTION = [{"role": "user", "content": "Is my data private?"}]
GREEDY = {"temperature": 0}
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


def chat(live, **fields):
    return live.json("POST", CHAT, {"model": "demo", "messages": QUESTION, **GREEDY, **fields})


def check_models(live):
    status, body = live.json("GET", "/v1/models")
    check(status == 200 and body["object"] == "list" and body["data"][0]["id"] == "demo", "models",
          body)
    check(live.json("GET", "/models") == (status, body), "models without /v1")
    status, body = live.json("GET", "/v1/models/demo")
    check(status == 200 and body["id"] == "demo", "one model", body)
    check(live.json("GET", "/models/demo") == (status, body), "one model without /v1")
    status, body = live.json("GET", "/v1/models/x")
    check(status == 404 and body["error"]["code"] == "model_not_found" and "there is: demo" in body["error"]["message"],
          "a model that is not there: those that are", body)
    check("opened demo" not in live.log, "listing models opens none", live.log)
    check(live.json("GET", "/health") == (200, {"status": "ok"}), "health")


def check_chat(live):
    status, body = chat(live)
    choice = body["choices"][0]
    check(status == 200 and body["object"] == "chat.completion" and body["model"] == "demo", "chat",
          body)
    check("leaves the building" in choice["message"]["content"], "the answer", body)
    check(choice["finish_reason"] == "stop" and choice["message"]["role"] == "assistant", "reason")
    usage = body["usage"]
    check(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], "usage", usage)
    text = choice["message"]["content"]
    alone = tap.consort("run", server.DEMO, "-p", QUESTION[0]["content"], "--temp", "0").decode()
    check(text == alone.rstrip("\n"), "the text of consort run", (text, alone))
    status, body = chat(live, max_tokens=3)
    check(body["choices"][0]["finish_reason"] == "length" and
          body["usage"]["completion_tokens"] == 3, "max_tokens", body)
    status, body = chat(live, stop=["the building"])
    check(body["choices"][0]["message"]["content"] == text.split("the building")[0] and
          body["choices"][0]["finish_reason"] == "stop", "a stop text", body)
    status, body = chat(live, n=3)
    check([c["index"] for c in body["choices"]] == [0, 1, 2] and
          len({c["message"]["content"] for c in body["choices"]}) == 1, "n greedy choices", body)
    status, body = chat(live, n=2, temperature=50, top_k=0, top_p=1, min_p=0, seed=5, max_tokens=20)
    again = chat(live, n=2, temperature=50, top_k=0, top_p=1, min_p=0, seed=5, max_tokens=20)[1]
    texts = [c["message"]["content"] for c in body["choices"]]
    check(texts[0] != texts[1] and texts == [c["message"]["content"] for c in again["choices"]],
          "a seed gives the same choices again", (texts, again))


def check_stream(live):
    whole = chat(live)[1]
    events = live.events(CHAT, {"messages": QUESTION, **GREEDY,
                                "stream_options": {"include_usage": True}})
    check(events[-1] == "[DONE]", "a stream ends with [DONE]", events[-1])
    chunks = [json.loads(event) for event in events[:-1]]
    check(len({(c["id"], c["created"], c["object"]) for c in chunks}) == 1, "one id, one time")
    check(chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}, "the first chunk")
    check(all("finish_reason" in c["choices"][0] and c["choices"][0]["finish_reason"] is None
              for c in chunks[:-2]), "finish_reason is there and null")
    check(chunks[-2]["choices"][0]["delta"] == {} and
          chunks[-2]["choices"][0]["finish_reason"] == "stop", "the last chunk", chunks[-2])
    check(chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] ==
          whole["usage"]["completion_tokens"], "usage, where asked for", chunks[-1])
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1])
    check(text == whole["choices"][0]["message"]["content"], "the same text in pieces", text)
    plain = live.events(CHAT, {"messages": QUESTION, **GREEDY})
    check(all("usage" not in json.loads(e) for e in plain[:-1]), "no usage where not asked for")
    status, headers, _ = live.request("POST", CHAT, {"messages": QUESTION, "stream": True})
    check(headers["Cache-Control"] == "no-cache" and headers["X-Accel-Buffering"] == "no",
          "headers of a stream", str(headers))


def check_echo(live):
    """The log probabilities of a prompt are those that its tokens have as an answer."""
    ask = {"prompt": "consort is", "logprobs": 2, **GREEDY}
    answer = live.json("POST", COMPLETION, {**ask, "max_tokens": 6})[1]["choices"][0]
    whole = ask["prompt"] + answer["text"]
    status, body = live.json("POST", COMPLETION, {**ask, "prompt": whole, "max_tokens": 0, "echo": True})
    choice = body["choices"][0]
    found = choice["logprobs"]
    check(status == 200 and choice["text"] == whole and choice["finish_reason"] == "length" and
          body["usage"]["completion_tokens"] == 0, "echo of no answer", body)
    check(found["token_logprobs"][0] is None and found["top_logprobs"][0] is None and
          found["tokens"][-6:] == answer["logprobs"]["tokens"] and
          found["token_logprobs"][-6:] == answer["logprobs"]["token_logprobs"] and
          found["top_logprobs"][-6:] == answer["logprobs"]["top_logprobs"], "echo with logprobs",
          (found, answer))
    check(all(whole[at:].startswith(token) for token, at in zip(found["tokens"], found["text_offset"])),
          "where its tokens stand", found)
    status, body = live.json("POST", COMPLETION, {**ask, "max_tokens": 6, "echo": True})
    both = body["choices"][0]["logprobs"]
    check(both["tokens"] == found["tokens"] and both["token_logprobs"] == found["token_logprobs"] and
          both["text_offset"] == found["text_offset"] and body["choices"][0]["text"] == whole,
          "echo and an answer", (both, found))
    events = live.events(COMPLETION, {**ask, "max_tokens": 6, "echo": True})
    parts = [json.loads(event)["choices"][0] for event in events[:-1]]
    check("".join(p["text"] for p in parts) == whole and
          [t for p in parts for t in p["logprobs"]["tokens"]] == found["tokens"] and
          [t for p in parts for t in p["logprobs"]["text_offset"]] == found["text_offset"],
          "echo and an answer, streamed", parts)
    ids = live.json("POST", "/tokenize", {"content": whole})[1]["tokens"]
    status, body = live.json("POST", COMPLETION, {"prompt": ids, "max_tokens": 0, "echo": True})
    check(body["choices"][0]["text"] == whole, "echo of tokens", body)
    status, body = chat(live, max_tokens=0)
    check(status == 400 and "at least 1" in body["error"]["message"], "a chat of no tokens", body)


def check_completions(live):
    status, body = live.json("POST", COMPLETION, {"prompt": "consort is", "max_tokens": 5, **GREEDY})
    check(status == 200 and body["object"] == "text_completion", "completion", body)
    raw = tap.consort("run", server.DEMO, "--raw", "-p", "consort is", "-n", "5", "--temp", "0")
    check(body["choices"][0]["text"] == raw.decode().rstrip("\n"), "the text of run --raw",
          (body, raw))
    status, echo = live.json("POST", COMPLETION,
                             {"prompt": "consort is", "max_tokens": 5, "echo": True, **GREEDY})
    check(echo["choices"][0]["text"] == "consort is" + body["choices"][0]["text"], "echo", echo)
    status, two = live.json("POST", COMPLETION, {"prompt": ["consort is", "GGUF"], "n": 2,
                                                 "max_tokens": 2, **GREEDY})
    check([c["index"] for c in two["choices"]] == [0, 1, 2, 3], "prompts times n", two)
    status, scored = live.json("POST", COMPLETION, {"prompt": "consort is", "max_tokens": 3,
                                                    "logprobs": 2, **GREEDY})
    logprobs = scored["choices"][0]["logprobs"]
    check(len(logprobs["tokens"]) == 3 and all(len(t) == 2 for t in logprobs["top_logprobs"]) and
          logprobs["text_offset"][0] == 0, "logprobs", scored)
    status, scored = chat(live, logprobs=True, top_logprobs=3, max_tokens=2)
    content = scored["choices"][0]["logprobs"]["content"]
    check(len(content) == 2 and len(content[0]["top_logprobs"]) == 3 and
          content[0]["logprob"] == content[0]["top_logprobs"][0]["logprob"] and
          bytes(content[0]["bytes"]).decode() == content[0]["token"], "logprobs of a chat", scored)
    check_echo(live)
    events = live.events(COMPLETION, {"prompt": "consort is", "max_tokens": 5, **GREEDY})
    text = "".join(json.loads(e)["choices"][0]["text"] for e in events[:-1])
    check(events[-1] == "[DONE]" and text == body["choices"][0]["text"], "a streamed completion")


def check_errors(live):
    cases = [
        ("a model that is not there", CHAT, {"model": "gpt", "messages": QUESTION}, 404,
         "model_not_found"),
        ("no messages", CHAT, {"model": "demo"}, 400, None),
        ("broken JSON", CHAT, b"{", 400, None),
        ("JSON that is no UTF-8", CHAT, b'{"model":"\xff"}', 400, None),
        ("a wrong type", CHAT, {"messages": QUESTION, "temperature": "hot"}, 400, None),
        ("functions as they were before tools", CHAT,
         {"messages": QUESTION, "functions": [{"name": "f"}], "function_call": "auto"}, 400, None),
        ("an answer that is spoken", CHAT, {"messages": QUESTION, "modalities": ["text", "audio"]}, 400, None),
        ("a verbosity", CHAT, {"messages": QUESTION, "verbosity": "low"}, 400, None),
        ("the best of several", COMPLETION, {"prompt": "a", "best_of": 3, "n": 2}, 400, None),
        ("a token that is not there", COMPLETION, {"prompt": [10 ** 9]}, 400, None),
        ("a chat model asked for embeddings", "/v1/embeddings", {"input": "a"}, 400, None),
        ("a path that is not there", "/v1/nothing", {}, 404, "not_found"),
    ]
    for name, path, body, wanted, code in cases:
        status, answer = live.json("POST", path, body)
        error = answer["error"]
        check(status == wanted and error["code"] == code and error["message"], name, answer)
    status, answer = chat(live, max_tokens=2, modalities=["text"], verbosity="medium", functions=None, n=1)
    check(status == 200, "values that ask for nothing", answer)
    status, answer = live.json("GET", CHAT)
    check(status == 405, "a wrong method", answer)
    status, answer = live.json("POST", COMPLETION, {"prompt": "word " * 20000, "stream": True})
    error = answer["error"]
    check(status == 400 and error["code"] == "context_length_exceeded" and
          str(error["n_prompt_tokens"]) in error["message"] and
          str(error["n_ctx"]) in error["message"], "a prompt that is too long", answer)


def check_origins(live):
    for name, headers, wanted in [
        ("a foreign host", {"Host": "evil.example"}, 403),
        ("a host that looks like ours", {"Host": "127.0.0.1.evil.example"}, 403),
        ("a foreign origin", {"Origin": "https://evil.example"}, 403),
        ("a local origin", {"Origin": "http://localhost:3000"}, 200),
    ]:
        status, _, body = live.request("GET", "/v1/models", headers=headers)
        check(status == wanted, name, (status, body))


def check_many(live):
    alone = chat(live)[1]["choices"][0]["message"]["content"]
    results = []

    def ask():
        results.append(chat(live)[1]["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(results == [alone] * 24, "24 at once give the same text", set(results))
    status, _, metrics = live.request("GET", "/metrics")
    values = dict(re.findall(r'^consort_(\w+)\{model="demo"\} (\d+)$', metrics.decode(), re.M))
    check(status == 200 and int(values["requests_accepted_total"]) > 24 and
          values["requests_running"] == "0", "metrics", metrics.decode())
    check("private" not in live.log and "building" not in live.log, "no prompt or answer in the log",
          live.log)


def check_leaving(live):
    """A client that leaves in the middle frees its place."""
    body = json.dumps({"messages": QUESTION, "stream": True, "max_tokens": 100000,
                       "logit_bias": {}, "temperature": 5, "top_k": 0, "top_p": 1, "min_p": 0})
    for when in ("before the answer", "in the answer"):
        client = socket.create_connection(("127.0.0.1", live.port), timeout=tap.TIMEOUT_S)
        client.sendall((f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                        f"\r\n{body}").encode())
        if when == "in the answer":
            client.recv(1000)
        client.close()
    check(chat(live)[0] == 200, "clients that leave do no harm")


def check_keys():
    live = server.Server("--api-key", "sesame")
    for headers, wanted in [({}, 401), ({"Authorization": "Bearer wrong"}, 401),
                            ({"Authorization": "Bearer sesame"}, 200), ({"x-api-key": "sesame"}, 200),
                            ({"Authorization": "Bearer sesame", "Origin": "https://a.example"}, 200)]:
        status, _, body = live.request("GET", "/v1/models", headers=headers)
        check(status == wanted, f"with a key: {headers}", (status, body))
    check(live.stop() == 0, "it ends with 0")
    try:
        server.Server("--listen", "0.0.0.0:0").stop()
        check(False, "other machines need a key")
    except tap.Failure as failure:
        check(failure.code == 1 and "--api-key" in str(failure), "other machines need a key", failure)


def check_ending():
    live = server.Server("--preload", "--drain", 600)
    check(live.wait_log("opened demo"), "--preload opens at once", live.log)
    connection = live.connect()
    connection.request("POST", CHAT, json.dumps({"messages": QUESTION, **GREEDY, "stream": True}))
    response = connection.getresponse()
    response.readline()
    live.process.send_signal(signal.SIGTERM)
    rest = response.read()
    check(rest.endswith(b"data: [DONE]\n\n"), "SIGTERM lets a stream finish", rest)
    connection.close()
    check(live.stop() == 0, "and the server ends with 0", live.log)


def main():
    live = server.Server()
    for part in (check_models, check_chat, check_stream, check_completions, check_errors,
                 check_origins, check_many, check_leaving):
        part(live)
    check(live.stop() == 0, "the server ends with 0", live.log)
    check_keys()
    check_ending()
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
