#!/usr/bin/env python3
"""OpenAI's Responses over a live server with the demo model: the order of events, and what is kept."""
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import server  # noqa: E402
import tap  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
QUESTION = "Is my data private?"
PATH = "/v1/responses"
GREEDY = {"model": "demo", "temperature": 0}


def text_of(response):
    return "".join(part["text"] for item in response["output"] if item["type"] == "message"
                   for part in item["content"])


def events(live, body):
    """(name, data) of each event."""
    status, headers, data = live.request("POST", PATH, {**GREEDY, **body, "stream": True})
    assert status == 200 and headers["Content-Type"] == "text/event-stream", (status, data)
    parts = data.decode().split("\n\n")
    assert parts[-1] == "", parts
    split = [part.split("\n") for part in parts[:-1]]
    return [(name[len("event: "):], json.loads(line[len("data: "):])) for name, line in split]


def check_whole(live):
    status, body = live.json("POST", PATH, {**GREEDY, "input": QUESTION})
    item = body["output"][0]
    chat = live.json("POST", "/v1/chat/completions",
                     {**GREEDY, "messages": [{"role": "user", "content": QUESTION}]})[1]
    text = chat["choices"][0]["message"]["content"]
    check(status == 200 and body["object"] == "response" and body["status"] == "completed" and
          body["id"].startswith("resp_") and item["type"] == "message" and item["status"] == "completed" and
          item["role"] == "assistant" and text_of(body) == text, "a response", body)
    usage = body["usage"]
    check(usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0 and
          usage["output_tokens"] == chat["usage"]["completion_tokens"], "usage", usage)
    check(body["tool_choice"] == "auto" and body["parallel_tool_calls"] is True and body["tools"] == [] and
          body["text"] == {"format": {"type": "text"}} and body["error"] is None and body["store"] is True,
          "what the request did not say", body)
    items = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    body = live.json("POST", "/responses", {**GREEDY, "input": items})[1]
    check(text_of(body) == text, "a list of items, without /v1", body)
    body = live.json("POST", PATH, {**GREEDY, "input": QUESTION, "max_output_tokens": 3})[1]
    check(body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"} and
          body["output"][0]["status"] == "incomplete" and body["max_output_tokens"] == 3, "a cut response", body)
    return text


def check_stream(live, text):
    found = events(live, {"input": QUESTION})
    names = [name for name, _ in found]
    count = names.count("response.output_text.delta")
    check(names == ["response.created", "response.in_progress", "response.output_item.added",
                    "response.content_part.added", *["response.output_text.delta"] * count,
                    "response.output_text.done", "response.content_part.done", "response.output_item.done",
                    "response.completed"], "the order of events", names)
    check([data["sequence_number"] for _, data in found] == list(range(len(found))) and
          all(name == data["type"] for name, data in found), "numbers and names of events", found)
    data = dict(found)
    check("".join(d["delta"] for n, d in found if n == "response.output_text.delta") == text ==
          data["response.output_text.done"]["text"] == data["response.content_part.done"]["part"]["text"] ==
          text_of(data["response.completed"]["response"]), "the text of a stream", found)
    item = data["response.output_item.added"]["item"]
    check(item["status"] == "in_progress" and item["content"] == [] and
          {d["item_id"] for _, d in found if "item_id" in d} == {item["id"]} and
          data["response.output_item.done"]["item"] == data["response.completed"]["response"]["output"][0],
          "the item of a stream", found)
    check(data["response.created"]["response"]["status"] == "in_progress" and
          data["response.created"]["response"]["id"] == data["response.completed"]["response"]["id"],
          "one id", found)
    last = events(live, {"input": QUESTION, "max_output_tokens": 2})[-1]
    check(last[0] == "response.incomplete" and last[1]["response"]["usage"]["output_tokens"] == 2,
          "a cut stream", last)


def check_items(live):
    """Items of earlier turns become the messages of a chat."""
    tool = {"type": "function", "name": "weather", "description": "d", "strict": True,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather",
            "arguments": "{\"city\":\"Paris\"}"}
    items = [{"type": "message", "role": "user", "content": "Weather?"},
             {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
             call, {**call, "call_id": "call_2"},
             {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
             {"type": "function_call_output", "call_id": "call_2",
              "output": [{"type": "input_text", "text": "sun"}]},
             {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
              "content": [{"type": "output_text", "text": "Rain.", "annotations": []}]},
             {"role": "user", "content": "Thanks"}]
    ask = {**GREEDY, "input": items, "instructions": "Be brief.", "tools": [tool, {"type": "web_search"}],
           "store": False, "reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"],
           "max_output_tokens": 4}
    status, body = live.json("POST", PATH, ask)
    calls = [{"id": f"call_{i}", "type": "function",
              "function": {"name": "weather", "arguments": call["arguments"]}} for i in (1, 2)]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": "", "tool_calls": calls, "reasoning_content": "hm"},
                {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "rain"},
                {"role": "tool", "tool_call_id": "call_2", "name": "weather", "content": "sun"},
                {"role": "assistant", "content": "Rain."}, {"role": "user", "content": "Thanks"}]
    chat = live.json("POST", "/v1/chat/completions",
                     {**GREEDY, "messages": messages, "max_tokens": 4, "tools": [
                         {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}]})[1]
    check(status == 200 and body["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"] and
          text_of(body) == chat["choices"][0]["message"]["content"], "items of earlier turns", (body, chat))
    check(body["instructions"] == "Be brief." and body["tools"] == ask["tools"] and body["store"] is False and
          body["reasoning"] == {"effort": "low"}, "what the request said", body)


def check_kept(live):
    first = live.json("POST", PATH, {**GREEDY, "input": QUESTION})[1]
    follow = {**GREEDY, "input": "Why?", "max_output_tokens": 5}
    second = live.json("POST", PATH, {**follow, "previous_response_id": first["id"]})[1]
    resent = live.json("POST", PATH, {**follow, "input": [
        {"role": "user", "content": QUESTION}, *first["output"], {"role": "user", "content": "Why?"}]})[1]
    check(second["usage"]["input_tokens"] == resent["usage"]["input_tokens"] and
          text_of(second) == text_of(resent) and second["previous_response_id"] == first["id"],
          "a response that follows another", (second, resent))
    third = events(live, {**follow, "previous_response_id": second["id"]})[-1][1]["response"]
    check(third["usage"]["input_tokens"] > second["usage"]["input_tokens"], "and one that follows that", third)
    check(live.json("GET", f"{PATH}/{first['id']}") == (200, first), "a response is told again")
    check(live.json("GET", f"{PATH}/{third['id']}") == (200, third), "also one that was streamed")
    check(live.json("DELETE", f"{PATH}/{first['id']}") ==
          (200, {"id": first["id"], "object": "response", "deleted": True}), "a response is deleted")
    for method in ("GET", "DELETE"):
        status, body = live.json(method, f"{PATH}/{first['id']}")
        check(status == 404 and "not stored" in body["error"]["message"], f"{method} of what is not there", body)
    status, body = live.json("POST", PATH, {**follow, "previous_response_id": first["id"]})
    check(status == 404 and body["error"]["param"] == "previous_response_id", "following what is not there", body)
    unkept = live.json("POST", PATH, {**follow, "store": False})[1]
    check(live.json("GET", f"{PATH}/{unkept['id']}")[0] == 404, "store: false")
    return third["id"]


def check_refused(live):
    for name, body, word in [
        ("no input", {}, "input"), ("an input that is none", {"input": 5}, "input"),
        ("an item that is none", {"input": [5]}, "input.0"),
        ("an item that is not possible", {"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ("an image", {"input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": "data:"}]}]}, "images"),
        ("a call without a name", {"input": [{"type": "function_call", "call_id": "a", "arguments": "{}"}]}, "name"),
        ("a result without a call", {"input": [{"type": "function_call_output", "output": "a"}]}, "call_id"),
        ("a background response", {"input": "a", "background": True}, "background"),
        ("a tool that the host has", {"input": "a", "tool_choice": {"type": "web_search"}}, "only functions"),
        ("a tool without a name", {"input": "a", "tools": [{"type": "function"}]}, "tools"),
        ("tools that are none", {"input": "a", "tools": 5}, "tools"),
        ("a format that is none", {"input": "a", "text": {"format": {"type": "xml"}}}, "type"),
        ("a verbosity", {"input": "a", "text": {"verbosity": "low"}}, "text.verbosity"),
        ("too long a prompt", {"input": "word " * 20000}, "context"),
    ]:
        status, answer = live.json("POST", PATH, {**GREEDY, **body})
        check(status == 400 and word in answer["error"]["message"], f"refused: {name}", answer)
    status, answer = live.json("POST", PATH, {"model": "x", "input": "a"})
    check(status == 404 and answer["error"]["code"] == "model_not_found", "a model that is not there", answer)


def main():
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "CONSORT_HOME": home}
        live = server.Server(environment=environment)
        text = check_whole(live)
        check_stream(live, text)
        check_items(live)
        kept = check_kept(live)
        check_refused(live)
        check(live.stop() == 0, "the server ends with 0", live.log)
        live = server.Server(environment=environment)
        check(live.json("GET", f"{PATH}/{kept}")[0] == 200, "kept over a restart")
        live.stop()
        live = server.Server("--keep-responses", 0, environment=environment)
        body = live.json("POST", PATH, {**GREEDY, "input": QUESTION, "max_output_tokens": 1})[1]
        check(live.json("GET", f"{PATH}/{body['id']}")[0] == 404, "--keep-responses 0 keeps none")
        check(live.stop() == 0, "and ends with 0", live.log)
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
