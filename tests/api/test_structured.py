#!/usr/bin/env python3
"""Answers that follow a JSON Schema, a grammar or a tool's parameters, through every API, against a
server on the demo model. Its answers would be others without the constraint."""
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import server  # noqa: E402
import tap  # noqa: E402

QUESTION = [{"role": "user", "content": "Is my data private?"}]
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["name", "age"],
          "properties": {"name": {"type": "string", "maxLength": 12},
                         "age": {"type": "integer", "minimum": 7, "maximum": 9},
                         "kind": {"enum": ["a", "b"]}}}
BAD = {"type": "object", "properties": {"x": {"not": {"minimum": 0}}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {
    "type": "object", "required": ["city"], "additionalProperties": False,
    "properties": {"city": {"enum": cities}, "days": {"type": "integer", "minimum": 1, "maximum": 3}}}}}
    for name, cities in (("get_weather", ["Bonn", "Köln"]), ("get_time", ["Rom"]))]
CHAT = {"model": "demo", "messages": QUESTION, "max_tokens": 300}


def fits(text):
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return (set(value) - {"kind"} == {"name", "age"} and len(value["name"]) <= 12 and
            7 <= value["age"] <= 9 and value.get("kind", "a") in "ab")


def wanted(schema):
    return {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}


def content(body):
    return body["choices"][0]["message"]["content"]


def check_openai(report, live):
    for seed in range(6):
        status, body = live.json("POST", "/v1/chat/completions", {
            **CHAT, "temperature": seed / 2, "seed": seed, "response_format": wanted(SCHEMA)})
        report.check(status == 200 and fits(content(body)) and
                     body["choices"][0]["finish_reason"] == "stop", f"a schema, seed {seed}", body)
    events = live.events("/v1/chat/completions", {**CHAT, "response_format": wanted(SCHEMA)})
    text = "".join(json.loads(e)["choices"][0]["delta"].get("content") or "" for e in events[:-1])
    report.check(fits(text), "a schema, streamed", text)
    status, body = live.json("POST", "/v1/chat/completions", {
        **CHAT, "n": 3, "response_format": wanted(SCHEMA)})
    report.check(status == 200 and all(fits(c["message"]["content"]) for c in body["choices"]),
                 "a schema for three choices", body)
    status, body = live.json("POST", "/v1/chat/completions", {
        **CHAT, "temperature": 0, "max_tokens": 400, "response_format": {"type": "json_object"}})
    cut = body["choices"][0]["finish_reason"] == "length"
    report.check(status == 200 and content(body).startswith("{") and
                 (cut or isinstance(json.loads(content(body)), dict)), "any object", body)
    status, body = live.json("POST", "/v1/chat/completions", {
        **CHAT, "max_tokens": 3, "response_format": wanted(SCHEMA)})
    report.check(status == 200 and body["choices"][0]["finish_reason"] == "length",
                 "an answer that is cut", body)
    status, body = live.json("POST", "/v1/completions", {
        "model": "demo", "prompt": "a", "max_tokens": 50, "grammar": 'root ::= "x" [0-9]{4} "y"?'})
    report.check(status == 200 and re.fullmatch("x[0-9]{4}y?", body["choices"][0]["text"]),
                 "a grammar", body)
    for name, fields, words in [
            ("a bad schema", {"response_format": wanted(BAD)}, "#/properties/x/not"),
            ("no schema", {"response_format": {"type": "json_schema"}}, "must have a JSON Schema"),
            ("a bad grammar", {"grammar": "root ::= ("}, "line 1"),
            ("a tool that is not there", {"tools": TOOLS, "tool_choice": {
                "type": "function", "function": {"name": "f"}}}, "no tool f"),
            ("both", {"grammar": "root ::= []", "response_format": wanted(SCHEMA)}, "together")]:
        status, body = live.json("POST", "/v1/chat/completions", {**CHAT, **fields})
        report.check(status == 400 and words in body["error"]["message"], f"refused: {name}", body)


def call_fits(call, names):
    arguments = json.loads(call["arguments"])
    cities = {"get_weather": ["Bonn", "Köln"], "get_time": ["Rom"]}[call["name"]]
    return (call["name"] in names and set(arguments) <= {"city", "days"} and
            arguments["city"] in cities and 1 <= arguments.get("days", 1) <= 3)


def check_tools(report, live):
    both = ["get_weather", "get_time"]
    for seed in range(4):
        status, body = live.json("POST", "/v1/chat/completions", {
            **CHAT, "tools": TOOLS, "tool_choice": "required", "temperature": 2, "seed": seed})
        choice = body["choices"][0]
        calls = choice["message"].get("tool_calls") or []
        report.check(calls and all(call_fits(c["function"], both) for c in calls) and
                     choice["finish_reason"] == "tool_calls", f"a required call, seed {seed}", body)
    named = {"type": "function", "function": {"name": "get_time"}}
    events = live.events("/v1/chat/completions", {**CHAT, "tools": TOOLS, "tool_choice": named})
    call = {"name": "", "arguments": ""}
    for event in events[:-1]:
        for delta in json.loads(event)["choices"][0]["delta"].get("tool_calls") or []:
            for field in call:
                call[field] += delta["function"].get(field) or ""
    report.check(call_fits(call, ["get_time"]), "a named call, streamed", call)
    status, body = live.json("POST", "/v1/messages", {
        "model": "demo", "max_tokens": 200, "messages": QUESTION,
        "tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}})
    used = [b for b in body["content"] if b["type"] == "tool_use"]
    report.check(status == 200 and len(used) == 1 and fits(json.dumps(used[0]["input"])),
                 "anthropic: a required call", body)


def check_strict(report, live):
    """Who may call need not, but a call of a strict tool has the arguments of its schema."""
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}, TOOLS[1]]
    plain = live.json("POST", "/v1/chat/completions", {**CHAT, "tools": TOOLS, "temperature": 0})[1]
    status, body = live.json("POST", "/v1/chat/completions", {**CHAT, "tools": strict, "temperature": 0})
    report.check(status == 200 and content(body) == content(plain) != "", "a strict tool that is not called",
                 (body, plain))
    made, texts = 0, 0
    for seed in range(8):
        status, body = live.json("POST", "/v1/chat/completions", {
            **CHAT, "tools": strict[:2 - seed % 2], "temperature": 3, "top_k": 0, "top_p": 1, "min_p": 0, "seed": seed,
            "logit_bias": {str(brace(live)): 100} if seed % 2 else {}, "max_tokens": 150})
        calls = body["choices"][0]["message"].get("tool_calls") or []
        named = [c["function"] for c in calls if c["function"]["name"] == "get_weather"]
        made += len(named)
        texts += not calls
        report.check(status == 200 and all(call_fits(c, ["get_weather"]) for c in named),
                     f"a strict tool, seed {seed}", body)
    report.check(texts > 0 and made > 0, "there are texts and calls", (made, texts))
    bad = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": BAD}}]
    status, body = live.json("POST", "/v1/chat/completions", {**CHAT, "tools": bad})
    report.check(status == 400 and "#/properties/x/not" in body["error"]["message"],
                 "a strict tool whose schema cannot be enforced", body)
    bad[0]["function"]["strict"] = False
    report.check(live.json("POST", "/v1/chat/completions", {**CHAT, "tools": bad})[0] == 200,
                 "and one that is not strict")
    status, body = live.json("POST", "/v1/messages", {
        "model": "demo", "max_tokens": 50, "messages": QUESTION,
        "tools": [{"name": "f", "strict": True, "input_schema": BAD}]})
    report.check(status == 400 and "#/properties/x/not" in body["error"]["message"],
                 "anthropic: a strict tool", body)


def brace(live):
    """The token that begins a call."""
    return live.json("POST", "/tokenize", {"content": '{"'})[1]["tokens"][0]


def check_others(report, live):
    status, body = live.json("POST", "/api/chat", {"messages": QUESTION, "stream": False,
                                                   "format": SCHEMA})
    report.check(status == 200 and fits(body["message"]["content"]), "ollama: a schema", body)
    status, body = live.json("POST", "/api/generate", {
        "prompt": "a", "stream": False, "format": "json", "options": {"num_predict": 400}})
    report.check(status == 200 and body["response"].startswith("{"), "ollama: json", body)
    status, body = live.json("POST", "/api/chat", {"messages": QUESTION, "format": BAD})
    report.check(status == 400 and "#/properties/x/not" in body["error"], "ollama: a bad schema", body)
    status, body = live.json("POST", "/completion", {"prompt": "a", "json_schema": SCHEMA})
    report.check(status == 200 and fits(body["content"]), "llama: a schema", body)
    status, body = live.json("POST", "/completion", {"prompt": "a", "grammar": 'root ::= "no" | "yes"'})
    report.check(status == 200 and body["content"] in ("no", "yes"), "llama: a grammar", body)
    status, body = live.json("POST", "/v1/messages", {
        "model": "demo", "max_tokens": 200, "messages": QUESTION,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}})
    report.check(status == 200 and fits(body["content"][0]["text"]), "anthropic: a schema", body)


def check_llama_field(report, live):
    """llama-server's own field beside messages."""
    status, body = live.json("POST", "/v1/chat/completions", {
        "messages": [{"role": "user", "content": "a"}], "temperature": 0,
        "json_schema": {"const": "42"}})
    report.check(status == 200 and body["choices"][0]["message"]["content"] == '"42"', "json_schema beside messages",
                 body)


def main():
    report = tap.Report()
    live = server.Server()
    try:
        check_openai(report, live)
        check_tools(report, live)
        check_strict(report, live)
        check_others(report, live)
        check_llama_field(report, live)
    finally:
        live.stop()
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
