#!/usr/bin/env python3
"""The APIs besides OpenAI's over a live server with the demo model."""
import json
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import server  # noqa: E402
import tap  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
QUESTION = [{"role": "user", "content": "Is my data private?"}]
GREEDY = {"temperature": 0}


def openai_text(live):
    body = live.json("POST", "/v1/chat/completions", {"messages": QUESTION, **GREEDY})[1]
    return body["choices"][0]["message"]["content"]


# ---- Ollama


def lines(live, path, body):
    status, headers, data = live.request("POST", path, body)
    assert status == 200 and headers["Content-Type"] == "application/x-ndjson", (status, data)
    return [json.loads(line) for line in data.decode().splitlines()]


def check_ollama_models(live):
    check(live.json("GET", "/api/version")[1].keys() == {"version"}, "ollama: version")
    status, body = live.json("GET", "/api/tags")
    model = body["models"][0]
    check(status == 200 and model["name"] == "demo:latest" and
          model["size"] == server.DEMO.stat().st_size and model["details"]["format"] == "gguf" and
          re.fullmatch("[0-9a-f]{64}", model["digest"]),
          "ollama: tags", body)
    status, body = live.json("POST", "/api/show", {"model": "demo"})
    check(status == 200 and body["model_info"]["llama.context_length"] == 512 and
          "completion" in body["capabilities"] and body["details"]["quantization_level"] == "F16" and
          "message" in body["template"], "ollama: show", body)
    check(live.json("GET", "/api/ps") == (200, {"models": []}), "ollama: looking opens no model")
    status, body = live.json("POST", "/api/generate", {"model": "demo", "keep_alive": "1h"})
    check(status == 200 and body["done_reason"] == "load", "ollama: load", body)
    status, body = live.json("GET", "/api/ps")
    check(body["models"][0]["name"] == "demo:latest" and body["models"][0]["context_length"] == 512,
          "ollama: ps", body)


def check_too_large(live):
    """A body that the HTTP server refuses by itself: the answer has the format of the API all the same."""
    shapes = {"/v1/chat/completions": lambda body: body["error"]["type"] == "invalid_request_error" and
              sorted(body["error"]) == ["code", "message", "param", "type"],
              "/v1/messages": lambda body: body["type"] == "error" and body["error"]["type"] == "request_too_large",
              "/api/chat": lambda body: sorted(body) == ["error"] and isinstance(body["error"], str)}
    for path, fits in shapes.items():
        connection = live.connect()
        connection.putrequest("POST", path)
        connection.putheader("Content-Length", str(1 << 40))
        connection.endheaders()
        response = connection.getresponse()
        body = json.loads(response.read())
        check(response.status == 413 and fits(body) and "too large" in json.dumps(body), f"{path}: 413", body)
        connection.close()


def check_ollama_chat(live):
    ask = {"model": "demo:latest", "messages": QUESTION, "options": GREEDY}
    text = openai_text(live)
    status, body = live.json("POST", "/api/chat", {**ask, "stream": False})
    check(status == 200 and body["message"] == {"role": "assistant", "content": text} and
          body["done"] and body["done_reason"] == "stop" and body["model"] == "demo:latest" and
          body["eval_count"] > 0 and body["total_duration"] >= body["eval_duration"] > 0,
          "ollama: a chat", body)
    parts = lines(live, "/api/chat", ask)
    check("".join(p["message"]["content"] for p in parts) == text and parts[-1]["done"] and
          not any(p["done"] for p in parts[:-1]), "ollama: a streamed chat", parts)
    parts = lines(live, "/api/generate", {"prompt": QUESTION[0]["content"], "options": GREEDY})
    check("".join(p["response"] for p in parts) == text, "ollama: a prompt through the template",
          parts)
    body = live.json("POST", "/api/generate", {"prompt": "consort is", "raw": True, "stream": False,
                                               "options": {**GREEDY, "num_predict": 5}})[1]
    raw = live.json("POST", "/v1/completions", {"prompt": "consort is", "max_tokens": 5, **GREEDY})[1]
    check(body["response"] == raw["choices"][0]["text"] and body["done_reason"] == "length",
          "ollama: a raw prompt", body)


def check_ollama_errors(live):
    for name, path, body, wanted in [
        ("a model that is not there", "/api/chat", {"model": "x", "messages": QUESTION}, 404),
        ("a context that is too large", "/api/chat",
         {"messages": QUESTION, "options": {"num_ctx": 100000}}, 400),
        ("a format", "/api/chat", {"messages": QUESTION, "format": "xml"}, 400),
        ("broken JSON", "/api/chat", b"{", 400),
        ("a long prompt", "/api/generate", {"prompt": "word " * 20000}, 400),
        ("a chat model asked for embeddings", "/api/embed", {"input": "a"}, 400),
        ("the same of the older form", "/api/embeddings", {"prompt": "a"}, 400),
        ("a path that is not there", "/api/nothing", {}, 404),
    ]:
        status, answer = live.json("POST", path, body)
        check(status == wanted and isinstance(answer["error"], str) and answer.keys() == {"error"},
              f"ollama: {name}", answer)


def check_ollama_unload(live):
    status, body = live.json("POST", "/api/generate", {"model": "demo", "keep_alive": 0})
    check(body["done_reason"] == "unload" and live.wait_log("closing demo"), "ollama: unload", body)


# ---- Anthropic


def messages_events(live, body):
    """(name, data) of each event."""
    status, headers, data = live.request("POST", "/v1/messages", {**body, "stream": True})
    assert status == 200 and headers["Content-Type"] == "text/event-stream", (status, data)
    events = [part.split("\n") for part in data.decode().split("\n\n")[:-1]]
    return [(name[len("event: "):], json.loads(line[len("data: "):])) for name, line in events]


def check_messages(live):
    ask = {"model": "demo", "max_tokens": 200, "messages": QUESTION, **GREEDY}
    text = openai_text(live)
    status, body = live.json("POST", "/v1/messages", ask)
    check(status == 200 and body["type"] == "message" and body["stop_reason"] == "end_turn" and
          body["content"] == [{"type": "text", "text": text}], "anthropic: a message", body)
    usage = body["usage"]
    events = messages_events(live, ask)
    names = [name for name, _ in events]
    count = names.count("content_block_delta")
    check(names == ["message_start", "content_block_start", *["content_block_delta"] * count,
                    "content_block_stop", "message_delta", "message_stop"] and
          all(name == data["type"] for name, data in events), "anthropic: order of events", names)
    check("".join(d["delta"]["text"] for n, d in events if n == "content_block_delta") == text,
          "anthropic: a streamed message", events)
    status, body = live.json("POST", "/v1/messages/count_tokens", {"messages": QUESTION})
    check(body == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]},
          "anthropic: count_tokens", (body, usage))
    start = events[0][1]["message"]["usage"]
    check(start["input_tokens"] + start["cache_read_input_tokens"] == body["input_tokens"],
          "anthropic: the prompt is counted at the start", start)
    status, body = live.json("POST", "/v1/messages", {**ask, "stop_sequences": ["the building"]})
    check(body["stop_reason"] == "stop_sequence" and body["stop_sequence"] == "the building" and
          body["content"][0]["text"] == text.split("the building")[0], "anthropic: a stop sequence",
          body)
    status, body = live.json("POST", "/v1/messages", {**ask, "max_tokens": 3})
    check(body["stop_reason"] == "max_tokens" and body["usage"]["output_tokens"] == 3,
          "anthropic: max_tokens", body)
    for number in (1, 2):
        system = [{"type": "text", "text": f"x-anthropic-billing-header: cc=1; cch={number}abc;"},
                  {"type": "text", "text": "Be brief. " * 20}]
        status, body = live.json("POST", "/v1/messages", {**ask, "system": system})
    check(body["usage"]["cache_read_input_tokens"] > 0, "anthropic: an attribution line does not change the prompt",
          body)


def check_messages_errors(live):
    ask = {"model": "demo", "max_tokens": 5, "messages": QUESTION}
    for name, path, body, wanted, kind in [
        ("no max_tokens", "/v1/messages", {"messages": QUESTION}, 400, "invalid_request_error"),
        ("a model that is not there", "/v1/messages", {**ask, "model": "x"}, 404, "not_found_error"),
        ("broken JSON", "/v1/messages/count_tokens", b"{", 400, "invalid_request_error"),
        ("a long prompt", "/v1/messages",
         {**ask, "messages": [{"role": "user", "content": "word " * 20000}]}, 400,
         "invalid_request_error"),
        ("a path that is not there", "/v1/messages/x", {}, 404, "not_found_error"),
    ]:
        status, answer = live.json("POST", path, body)
        check(status == wanted and answer["type"] == "error" and answer["error"]["type"] == kind and
              answer["error"]["message"], f"anthropic: {name}", answer)


# ---- llama-server


def check_llama(live):
    ask = {"prompt": "consort is", "n_predict": 5, **GREEDY}
    openai = live.json("POST", "/v1/completions", {"prompt": "consort is", "max_tokens": 5, **GREEDY})
    text = openai[1]["choices"][0]["text"]
    status, body = live.json("POST", "/completion", {**ask, "n_probs": 2})
    check(status == 200 and body["content"] == text and body["stop_type"] == "limit" and
          body["tokens_predicted"] == 5 and body["timings"]["predicted_n"] == 5 and
          len(body["completion_probabilities"]) == 5 and body["generation_settings"]["n_predict"] == 5,
          "llama: a completion", body)
    events = [json.loads(event) for event in live.events("/completion", ask)]
    check("".join(e["content"] for e in events) == text and events[-1]["stop"] and
          not any(e["stop"] for e in events[:-1]), "llama: a streamed completion", events)
    status, body = live.json("POST", "/completion", {**ask, "prompt": ["consort is", "GGUF"]})
    check([b["index"] for b in body] == [0, 1] and body[0]["content"] == text, "llama: two prompts", body)
    status, body = live.json("POST", "/completion", {**ask, "prompt": "Hi", "ignore_eos": True,
                                                     "n_predict": 100})
    check(body["tokens_predicted"] == 100, "llama: an end that is ignored", body)


def check_llama_tokens(live):
    status, body = live.json("POST", "/tokenize", {"content": "consort is", "with_pieces": True})
    check("".join(t["piece"] for t in body["tokens"]) == "consort is", "llama: pieces", body)
    status, body = live.json("POST", "/tokenize", {"content": "consort is"})
    check(live.json("POST", "/detokenize", body) == (200, {"content": "consort is"}),
          "llama: tokens and back", body)
    check(live.json("POST", "/detokenize", {"tokens": [10 ** 8]}) == (200, {"content": ""}),
          "llama: a token that is not there")
    status, body = live.json("POST", "/apply-template", {"messages": QUESTION})
    check(status == 200 and QUESTION[0]["content"] in body["prompt"], "llama: apply-template", body)
    answer = live.json("POST", "/completion", {"prompt": body["prompt"], **GREEDY})[1]
    check(answer["content"].strip() == openai_text(live) and answer["stop_type"] == "eos",
          "llama: a completion of a chat's prompt", answer)
    status, body = live.json("GET", "/props")
    check(status == 200 and body["default_generation_settings"]["n_ctx"] == 512 and
          body["model_path"] == str(server.DEMO) and "message" in body["chat_template"],
          "llama: props", body)
    status, slots = live.json("GET", "/slots")
    check(len(slots) == body["total_slots"] and slots[0]["n_ctx"] == 512, "llama: slots", slots)
    ids = live.json("POST", "/tokenize", {"content": " is"})[1]["tokens"]
    whole = live.json("POST", "/completion", {"prompt": "consort is", "n_predict": 4, **GREEDY})[1]
    for prompt in (["consort", *ids], {"prompt_string": "consort is"}):
        body = live.json("POST", "/completion", {"prompt": prompt, "n_predict": 4, **GREEDY})[1]
        check(body["content"] == whole["content"], "llama: a prompt of texts and tokens", body)
    status, body = live.json("POST", "/completion",
                             {"prompt": {"prompt_string": "a", "multimodal_data": ["aGk="]}})
    check(status == 400 and "multimodal_data" in body["error"]["message"], "llama: an image", body)
    body = live.json("POST", "/completion", {"prompt": "consort is", "n_predict": 4, **GREEDY,
                                             "return_tokens": True})[1]
    text = live.json("POST", "/detokenize", {"tokens": body["tokens"]})[1]["content"]
    check(len(body["tokens"]) == 4 and text == body["content"], "llama: the tokens of an answer", body)
    body = live.json("POST", "/completion", {"prompt": "consort is", "n_predict": 4, **GREEDY,
                                             "response_fields": ["content", "timings/predicted_n", "x/y"]})[1]
    check(body == {"content": whole["content"], "timings/predicted_n": 4}, "llama: response_fields", body)
    word = live.json("POST", "/tokenize", {"content": whole["content"]})[1]["tokens"][0]
    for bias in ([[word, False]], [[word, -100]], {str(word): -100},
                 [[live.json("POST", "/detokenize", {"tokens": [word]})[1]["content"], -100]]):
        body = live.json("POST", "/completion", {"prompt": "consort is", "n_predict": 1, **GREEDY,
                                                 "return_tokens": True, "logit_bias": bias})[1]
        check(body["tokens"] != [word], f"llama: logit_bias {bias}", body)
    for path, ask in (("/completions", {}), ("/completions", {"model": "demo"})):
        body = live.json("POST", path, {"prompt": "a", "n_predict": 1, "max_tokens": 1, **ask})[1]
        check(("choices" in body) == ("model" in ask), f"{path} of who names {ask or 'no model'}", body)
    status, body = live.json("POST", "/completion", {"prompt": "a", "grammar": "root ::= x"})
    check(status == 400 and "grammar" in body["error"]["message"], "llama: a grammar", body)


def check_begun_answer(live):
    """The last message is an answer's beginning, which is gone on with."""
    text = openai_text(live)
    beginning = " ".join(text.split(" ")[:4])
    begun = {"role": "assistant", "content": beginning}
    body = live.json("POST", "/v1/messages", {"max_tokens": 200, **GREEDY, "messages": [*QUESTION, begun]})
    check(beginning + body[1]["content"][0]["text"] == text, "anthropic: a begun answer", body)
    prompt = live.json("POST", "/apply-template", {"messages": [*QUESTION, begun]})[1]["prompt"]
    check(prompt == live.json("POST", "/apply-template", {"messages": QUESTION})[1]["prompt"] + beginning,
          "llama: a begun answer", prompt)
    short = live.json("POST", "/apply-template", {"messages": QUESTION, "add_generation_prompt": False})
    check(prompt.startswith(short[1]["prompt"]) and len(short[1]["prompt"]) < len(prompt) - len(beginning),
          "llama: a prompt that asks for no answer", short)
    status, body = live.json("POST", "/v1/chat/completions", {"messages": [*QUESTION, begun, begun]})
    check(status == 400 and "2 answers" in body["error"]["message"], "two begun answers", body)


def check_system(live):
    """What stands before a conversation is one message of the system."""
    def prompt(*messages):
        return live.json("POST", "/apply-template", {"messages": [*messages, *QUESTION]})[1]["prompt"]

    one = prompt({"role": "system", "content": "Be brief.\n\nBe kind.\n\nBe."})
    check(one == prompt({"role": "system", "content": "Be brief."},
                        {"role": "developer", "content": "Be kind."}, {"role": "system", "content": "Be."})
          and "Be kind." in one, "messages of the system are joined", one)


def check_defaults():
    """What `consort up` says for requests that do not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.jinja"
        path.write_text("{% for m in messages %}{{ m.content }}{% endfor %}"
                        "{% if enable_thinking is defined and not enable_thinking %}!{% endif %}")
        live = server.Server("--template", path, "--no-thinking", "--any-model", "--max-tokens", 3,
                             "--temp", 5, "--seed", 7)
    settings = live.json("GET", "/props")[1]["default_generation_settings"]["params"]
    check(settings["temperature"] == 5 and settings["seed"] == 7 and settings["n_predict"] == 3,
          "up: defaults of sampling", settings)
    answers = [live.json("POST", "/v1/completions", {"prompt": "a", "model": "gpt"})[1] for _ in range(2)]
    check(answers[0]["choices"] == answers[1]["choices"] and answers[0]["model"] == "gpt" and
          answers[0]["usage"]["completion_tokens"] == 3, "up: a seed, a length, and any model", answers)
    for ask, wanted in [({}, "Is my data private?!"),
                        ({"chat_template_kwargs": {"enable_thinking": True}}, "Is my data private?")]:
        body = live.json("POST", "/apply-template", {"messages": QUESTION, **ask})[1]
        check(body["prompt"] == wanted, "up: a template, and no thinking", body)
    check(live.stop() == 0, "the server with defaults ends with 0", live.log)


def check_narrow():
    """A template without a place for the system, and a context that ends before the answer does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "narrow.jinja"
        path.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"
                        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
        live = server.Server("--template", path, "--ctx", 64)
    system = {"role": "system", "content": "Be brief."}
    zero = {"role": "system", "content": "Be\0brief."}
    for messages, wanted in [([system, *QUESTION], f"<user>Be brief.\n\n{QUESTION[0]['content']}"),
                             ([zero, *QUESTION], f"<user>Be\0brief.\n\n{QUESTION[0]['content']}"),
                             ([*QUESTION], f"<user>{QUESTION[0]['content']}")]:
        body = live.json("POST", "/apply-template", {"messages": messages})[1]
        check(body.get("prompt") == wanted, "what the system says is said by the user", body)
    status, body = live.json("POST", "/apply-template", {"messages": [system]})
    check(status == 400 and "No system" in body["error"]["message"], "a refusal is told", body)
    for ask, truncated in [({}, True), ({"n_predict": 3}, False)]:
        body = live.json("POST", "/completion", {"prompt": "a", "ignore_eos": True, **GREEDY, **ask})[1]
        check(body["truncated"] == truncated and body["stop_type"] == "limit",
              f"llama: an answer cut by the {'context' if truncated else 'request'}", body)
    check(live.stop() == 0, "the narrow server ends with 0", live.log)


def main():
    live = server.Server()
    for part in (check_ollama_models, check_ollama_chat, check_ollama_errors, check_messages,
                 check_messages_errors, check_llama, check_llama_tokens, check_system, check_begun_answer,
                 check_too_large, check_ollama_unload):
        part(live)
    check(live.stop() == 0, "the server ends with 0", live.log)
    check_defaults()
    check_narrow()
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
