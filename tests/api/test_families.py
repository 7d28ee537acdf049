#!/usr/bin/env python3
"""Calls and reasoning in the form of Command R7B, through the server: the demo model with a template of that
form, whose marks are plain text to it. The template has no mark of reasoning, or the model could reason without end
where a grammar holds it."""
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import server  # noqa: E402
import tap  # noqa: E402

TEMPLATE = """{%- for m in messages %}<|START_OF_TURN_TOKEN|>{% if m.role == 'user' %}{{ m.content }}
{%- elif m.role == 'tool' %}<|START_TOOL_RESULT|>{{ m.content }}<|END_TOOL_RESULT|>
{%- elif m.tool_calls %}PLAN {{ m.tool_plan }}<|START_ACTION|>[
{%- for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments|tojson }}{% endfor %}]<|END_ACTION|>
{%- else %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% endif %}<|END_OF_TURN_TOKEN|>
{%- endfor %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"""
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "required": ["city"], "additionalProperties": False,
    "properties": {"city": {"enum": ["Bonn", "Köln"]}, "days": {"type": "integer", "minimum": 1, "maximum": 3}}}}},
         {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}}]
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Rain?"}], "max_tokens": 400}
CALLS = ('<|START_THINKING|>I look.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": '
         '"weather", "parameters": {"city": "Köln"}},\n    {"tool_call_id": "1", "tool_name": "stop", '
         '"parameters": {}}\n]<|END_ACTION|>')
ANSWER = "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>It <co>rains</co: 0:[0]>.<|END_RESPONSE|>"


def written(text):
    """A grammar that lets the model write this alone."""
    return {"grammar": "root ::= " + json.dumps(text, ensure_ascii=False)}


def streamed(live, fields):
    """The parts of a streamed answer: reasoning, content, [name, arguments] of the calls, why it ended."""
    parts, calls, reason = {"reasoning_content": "", "content": ""}, {}, None
    for event in live.events("/v1/chat/completions", {**CHAT, **fields})[:-1]:
        choice = json.loads(event)["choices"][0]
        reason = choice["finish_reason"] or reason
        for name in parts:
            parts[name] += choice["delta"].get(name) or ""
        for call in choice["delta"].get("tool_calls") or []:
            first = call["index"] not in calls
            assert [name in call for name in ("id", "type")] + ["name" in call["function"]] == [first] * 3, call
            mine = calls.setdefault(call["index"], ["", ""])
            mine[0] += call["function"].get("name") or ""
            mine[1] += call["function"].get("arguments") or ""
    return parts["reasoning_content"], parts["content"], [calls[i] for i in sorted(calls)], reason


def check_read(report, live):
    wanted = ("I look.", "", [["weather", '{"city":"Köln"}'], ["stop", "{}"]], "tool_calls")
    fields = {"tools": TOOLS, **written(CALLS)}
    status, body = live.json("POST", "/v1/chat/completions", {**CHAT, **fields})
    message = body["choices"][0]["message"]
    told = [[c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls") or []]
    report.check(status == 200 and (message.get("reasoning_content"), message["content"] or "", told,
                                    body["choices"][0]["finish_reason"]) == wanted, "reasoning and calls", body)
    got = streamed(live, fields)
    report.check(got == wanted, "and streamed", got)
    got = streamed(live, written(ANSWER))
    report.check(got == ("Hm.", "It <co>rains</co: 0:[0]>.", [], "stop"), "reasoning and an answer", got)


def fits(call):
    arguments = json.loads(call[1])
    return arguments == {} if call[0] == "stop" else (
        arguments["city"] in ("Bonn", "Köln") and set(arguments) <= {"city", "days"} and
        1 <= arguments.get("days", 1) <= 3)


def check_forced(report, live):
    for seed in range(4):
        named = {"type": "function", "function": {"name": "weather"}} if seed % 2 else "required"
        got = streamed(live, {"tools": TOOLS, "tool_choice": named, "temperature": 2, "seed": seed,
                              "parallel_tool_calls": seed < 2})
        report.check(got[2] and all(fits(c) for c in got[2]) and got[1] == "" and got[3] == "tool_calls" and
                     (seed < 2 or len(got[2]) == 1) and
                     (seed % 2 == 0 or [c[0] for c in got[2]] == ["weather"]), f"a call that must be, seed {seed}", got)


def check_plan(report, live):
    """The reasoning that led to a call goes back to the template as its plan."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    status, body = live.json("POST", "/apply-template", {"messages": [
        *CHAT["messages"], {"role": "assistant", "content": None, "reasoning_content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "no"}]})
    report.check(status == 200 and "PLAN I look.<|START_ACTION|>[weather" in body["prompt"], "a plan", body)


def main():
    report = tap.Report()
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as file:
        file.write(TEMPLATE)
        file.flush()
        live = server.Server("--template", file.name)
        try:
            check_read(report, live)
            check_forced(report, live)
            check_plan(report, live)
        finally:
            live.stop()
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
