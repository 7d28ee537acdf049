#!/usr/bin/env python3
"""Running the server: which models are open, and in how much memory."""
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import server  # noqa: E402
import tap  # noqa: E402

REPORT = tap.Report()
check = REPORT.check


def ask(live, model, **fields):
    """(status, headers, body) of a short answer."""
    body = {"model": model, "prompt": "consort is", "max_tokens": 3, **fields}
    status, headers, data = live.request("POST", "/v1/completions", body)
    return status, headers, json.loads(data)


def running(live, model):
    """How many requests the model answers just now; 0 where it is not open."""
    found = re.search(rf'^consort_requests_running{{model="{model}"}} (\d+)$',
                      live.request("GET", "/metrics")[2].decode(), re.M)
    return int(found.group(1)) if found else 0


class Busy:
    """Keeps a model in use: requests that together take very long, one after the other."""

    def __init__(self, live, model="demo"):
        body = json.dumps({"model": model, "prompt": "consort is", "max_tokens": 400, "n": 5,
                           "ignore_eos": True})
        self.connections = [live.connect() for _ in range(200)]
        for connection in self.connections:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        deadline = time.monotonic() + tap.TIMEOUT_S
        while running(live, model) == 0 and time.monotonic() < deadline:
            time.sleep(0.01)

    def end(self):
        for connection in self.connections:
            connection.close()


def kib(mib):
    return f"{int(mib * 1024)}K"


def least_mib():
    """What the demo model takes with its smallest cache, which the instruction set decides too."""
    live = server.Server("--cache", 1)
    ask(live, "demo")
    live.wait_log("opened demo")
    live.stop()
    return float(re.search(r"KV cache F16 for 512, ([\d.]+) MiB;", live.log).group(1))


def check_room_for_both(copy, _):
    live = server.Server("--memory", "1G", models=(f"demo={server.DEMO}", f"copy={copy}"))
    check(ask(live, "demo")[0] == 200 and ask(live, "copy")[0] == 200, "two models that fit")
    check(ask(live, "demo")[0] == 200 and live.stop() == 0 and "closing" not in live.log and
          len(re.findall("opened demo in", live.log)) == 1, "both stay open", live.log)
    check(re.search("opened demo.*context 512 tokens, KV cache F16 for 65536, .* of 1.0 GiB in use",
                    live.log), "the log says what an open model has", live.log)


def check_room_for_one(copy, least):
    live = server.Server("--memory", kib(1.5 * least), models=(f"demo={server.DEMO}", f"copy={copy}"))
    for model in ("demo", "copy", "demo"):
        status, _, body = ask(live, model)
        check(status == 200, f"{model} gets the memory", body)
    check(live.wait_log("closing demo: copy needs the memory") and
          live.wait_log("closing copy: demo needs the memory"), "an idle model makes room", live.log)
    check(live.stop() == 0, "it ends with 0", live.log)


def check_in_use(copy, least):
    """A model in use is never closed; who needs its memory waits, but not for ever."""
    models = (f"demo={server.DEMO}", f"copy={copy}")
    limit = ("--memory", kib(1.5 * least), "--parallel", 1)
    live = server.Server(*limit, "--memory-wait", 1, models=models)
    busy = Busy(live)
    status, headers, body = ask(live, "copy")
    check(status == 503 and headers["Retry-After"] == "10" and
          "others are using" in body["error"]["message"], "memory in use: 503 after a while", body)
    busy.end()
    live.stop()
    live = server.Server(*limit, models=models)
    busy = Busy(live)
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(ask(live, "copy")[0]))
    waiting.start()
    check(live.wait_log("copy waits for memory"), "it waits in line", live.log)
    busy.end()
    waiting.join()
    check(answers == [200], "and is opened when the other one falls idle", answers)
    check(live.stop() == 0, "it ends with 0", live.log)


def check_held(copy, least):
    """A stream that waits is opened before its first token, kept open with pings, and told of an error then; an
    error that comes early has its own status."""
    asked = {"/v1/chat/completions": (": ping\n\n", 'data: {"error":{"message":'),
             "/v1/messages": ('event: ping\ndata: {"type":"ping"}\n\n', 'event: error\ndata: {"type":"error",'),
             "/api/chat": ("", '{"error":"')}
    live = server.Server("--memory", kib(1.5 * least), "--parallel", 1, "--memory-wait", 7,
                         models=(f"demo={server.DEMO}", f"copy={copy}"))
    busy = Busy(live)
    answers = {}

    def ask_for(path):
        answers[path] = live.request("POST", path, {"model": "copy", "stream": True, "max_tokens": 3,
                                                    "messages": [{"role": "user", "content": "a"}]})
    threads = [threading.Thread(target=ask_for, args=(path,)) for path in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    busy.end()
    live.stop()
    for path, (ping, error) in asked.items():
        status, headers, data = answers[path]
        text = data.decode()
        check(status == 200 and text.startswith(ping + error) and "others are using" in text and
              text.count("\n") == (ping + error).count("\n") + (1 if path == "/api/chat" else 2) and
              headers["Cache-Control"] == "no-cache" and headers["X-Accel-Buffering"] == "no",
              f"{path}: a stream that waits", answers[path])
    live = server.Server("--memory", kib(1.5 * least), "--parallel", 1, "--memory-wait", 1,
                         models=(f"demo={server.DEMO}", f"copy={copy}"))
    busy = Busy(live)
    status, headers, body = ask(live, "copy", stream=True)
    check(status == 503 and headers["Retry-After"] == "10" and headers["Content-Type"] == "application/json",
          "a stream that fails early", body)
    busy.end()
    live.stop()


def check_queue():
    """Who comes when the queue is full is told when to come again, before a stream begins, and in the API's format."""
    live = server.Server("--parallel", 1, "--queue", 2)
    long = json.dumps({"model": "demo", "prompt": "consort is", "max_tokens": 400, "ignore_eos": True})
    shapes = {"/v1/chat/completions": lambda body: body["error"]["type"] == "server_error",
              "/v1/messages": lambda body: body["type"] == "error" and body["error"]["type"] == "overloaded_error",
              "/api/chat": lambda body: isinstance(body["error"], str)}
    for path, fits in shapes.items():
        for stream in (False, True):
            status, deadline = 200, time.monotonic() + tap.TIMEOUT_S
            while status == 200 and time.monotonic() < deadline:
                before = [live.connect() for _ in range(20)]
                for connection in before:
                    connection.request("POST", "/v1/completions", long, {"Content-Type": "application/json"})
                status, headers, body = live.request("POST", path, {
                    "model": "demo", "stream": stream, "max_tokens": 3, "messages": [{"role": "user", "content": "a"}]})
                for connection in before:
                    connection.close()
            check(status == 503 and int(headers["Retry-After"]) > 0 and fits(json.loads(body)),
                  f"{path}: the queue is full, stream {stream}", body)
    live.stop()


def check_too_large(copy, least):
    live = server.Server("--memory", kib(0.6 * least), models=(f"demo={server.DEMO}", f"copy={copy}"))
    status, headers, body = ask(live, "demo")
    check(status == 503 and int(headers["Retry-After"]) > 60 and
          re.search(r"demo does not fit in memory: .* [\d.]+ MiB .* MiB \(--memory\)",
                    body["error"]["message"]), "what never fits is refused with the numbers", body)
    live.stop()
    live = server.Server("--memory", kib(least + 0.3), "--ctx", 512, "--kv-type", "f32",
                         models=(f"demo={server.DEMO}",))
    status, _, body = ask(live, "demo")
    check(status == 503 and re.search(r"--ctx \d+, or \d+ with --kv-type q8_0",
                                      body["error"]["message"]), "what would fit is said", body)
    live.stop()


def check_options():
    for value in ("16", "0G", "120%", "-1G", "16X", "16Gx", "nanG"):
        try:
            server.Server("--memory", value).stop()
            check(False, f"--memory {value}")
        except tap.Failure as failure:
            check(failure.code == 2 and "80%" in str(failure), f"--memory {value}", failure)
    for value in ("80%", "1.5GiB", "2gb"):
        check(server.Server("--memory", value).stop() == 0, f"--memory {value}")


def check_commands():
    """What the owner of a server asks of it."""
    live = server.Server()
    code, out, _ = live.command("ps", "--json")
    state = json.loads(out)
    check(code == 0 and state["pid"] == live.process.pid and state["memory"]["used_bytes"] == 0 and
          state["models"][0]["name"] == "demo" and state["models"][0]["state"] == "closed",
          "ps --json", out)
    ask(live, "demo")
    model = json.loads(live.command("ps", "--json")[1])["models"][0]
    check(model["state"] == "open" and model["context"] == 512 and model["output_tokens"] == 3 and
          0 < model["keep_alive_s"] <= 300 and model["memory_bytes"] > 5 << 20, "an open model", model)
    code, out, _ = live.command("ps")
    check(code == 0 and "1 of 1 models open" in out and re.search(r"demo +open .* 4 min \d+ s\n", out),
          "ps", out)
    code, _, said = live.command("stop", "nobody")
    check(code == 1 and "there is: demo" in said, "stop needs a model that is there", said)
    code, _, said = live.command("stop", "demo:latest")
    check(code == 0 and "demo:latest is closed" in said and live.wait_log("closing demo: it was stopped"),
          "stop", said)
    busy = Busy(live)
    code, _, said = live.command("stop", "demo")
    check(code == 0 and "when its requests have ended" in said, "stop waits for requests", said)
    busy.end()
    check(live.wait_log("(?s)it was stopped.*it was stopped"), "and closes the model then", live.log)
    code, _, said = live.command("down")
    check(code == 0 and "has ended" in said and live.process.wait(tap.TIMEOUT_S) == 0, "down", said)
    code, _, said = live.command("ps")
    check(code == 1 and "no server of yours runs" in said, "then there is none", said)
    live.stop()


def check_control(folder):
    """Only the owner has the token; what a killed server leaves is cleared away."""
    live = server.Server("--api-key", "sesame")
    files = list(Path(live.home.name, "run").iterdir())
    facts = json.loads(files[0].read_text())
    check(len(files) == 1 and files[0].stat().st_mode & 0o777 == 0o600 and
          facts["url"] == f"http://127.0.0.1:{live.port}", "the control file", facts)
    for key, wanted in ((facts["token"][:-1] + "x", 401), ("", 401), ("sesame", 403)):
        status, _, body = live.request("POST", "/consort/down", {}, {"Authorization": f"Bearer {key}"})
        check(status == wanted, f"down with a wrong token: {wanted}", body)
    check(live.request("POST", "/consort/down", b"[]", {"Authorization": "Bearer " + facts["token"]})[0]
          == 400, "down takes an object")
    check(live.command("ps", "--json")[0] == 0, "the owner needs no key")
    code, _, said = live.command("ps", "--server", f"http://localhost:{live.port}")
    check(code == 1 and "API key" in said, "others do", said)
    code, out, _ = live.command("ps", "--server", f"localhost:{live.port}", "--api-key", "sesame")
    check(code == 0 and "models open" in out, "with a key they may look", out)
    code, _, said = live.command("down", "--server", f"localhost:{live.port}", "--api-key", "sesame")
    check(code == 1 and "run the command there" in said, "but not end it", said)
    second = server.Server(environment={"CONSORT_HOME": live.home.name})
    code, _, said = live.command("down")
    check(code == 1 and str(live.port) in said and str(second.port) in said, "two servers: which?", said)
    code, _, said = live.command("down", "--server", f"http://127.0.0.1:{second.port}/")
    check(code == 0 and second.process.wait(tap.TIMEOUT_S) == 0, "the one that is named ends", said)
    second.stop()
    live.process.kill()
    live.process.wait()
    check(list(Path(live.home.name, "run").iterdir()) == files, "a killed server leaves its file")
    code, _, said = live.command("down")
    check(code == 1 and "no server" in said and not files[0].exists(), "it is known to be stale", said)
    blocked = Path(folder) / "no-folder"
    blocked.write_text("")
    live = server.Server(environment={"CONSORT_HOME": str(blocked)})
    check("will not find this server" in live.log and ask(live, "demo")[0] == 200,
          "without a home it serves all the same", live.log)
    live.stop()


def check_drain():
    live = server.Server("--drain", 1, "--parallel", 1)
    busy = Busy(live)
    code, _, said = live.command("down")
    check(code == 0 and "requests may finish, for 1 s" in said and "has ended" in said,
          "requests have so long to end", said)
    check(live.process.wait(tap.TIMEOUT_S) == 0, "it ends with 0", live.log)
    busy.end()
    live.stop()
    live = server.Server("--drain", 600, "--parallel", 1)
    busy = Busy(live)
    live.process.send_signal(signal.SIGTERM)
    live.wait_log("shutting down")
    live.process.send_signal(signal.SIGTERM)
    check(live.process.wait(tap.TIMEOUT_S) == 0, "a second signal ends it at once", live.log)
    busy.end()
    live.stop()


def check_awake(folder):
    """The machine stays awake while answers are computed: a stand-in shows who asked for that."""
    if sys.platform == "darwin":
        REPORT.skip("the machine stays awake", "macOS has no program that a stand-in could be for")
        return
    note = Path(folder) / "note"
    stand_in = Path(folder) / "systemd-inhibit"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >{note}\nshift 4\n"$@"\necho ended >>{note}\n')
    stand_in.chmod(0o755)
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    live = server.Server(environment=path)
    live.json("GET", "/v1/models")
    check(not note.exists(), "an idle server lets the machine sleep")
    ask(live, "demo")
    while not note.exists() or not note.read_text():
        time.sleep(0.01)
    check("--what=idle:sleep --who=consort" in note.read_text() and "ended" not in note.read_text(),
          "one that answers does not", note.read_text())
    live.process.kill()
    live.process.wait()
    while "ended" not in note.read_text():
        time.sleep(0.01)
    check(True, "and when it is killed, the machine may sleep again")
    live.stop()


def check_config(folder):
    """Settings from a file; the command line has the last word."""
    file = Path(folder) / "settings.yaml"

    def refused(name, text, wanted):
        file.write_text(text)
        try:
            server.Server("--config", file, models=()).stop()
            check(False, f"config: {name}")
        except tap.Failure as failure:
            check(failure.code == 1 and f"{file}:{wanted}" in str(failure), f"config: {name}", failure)

    live = server.Server("--config", tap.ROOT / "docs/consort.yaml", models=(f"mine={server.DEMO}",))
    check(live.json("GET", "/v1/models")[1]["data"][0]["id"] == "mine" and live.stop() == 0,
          "config: the example, under the command line", live.log)
    file.write_text(f"model_list:\n- model_name: a\n  litellm_params: {{model: {server.DEMO}}}\n"
                    f"- b={server.DEMO}\nmemory: 1G\nkeep-alive: 7\njson-log: true\n")
    live = server.Server("--config", file, "--memory", "2G", models=())
    state = live.json("GET", "/consort/state")[1]
    check([model["name"] for model in state["models"]] == ["a", "b"] and
          state["memory"]["limit_bytes"] == 2 << 30, "config: LiteLLM's models, and options", state)
    ask(live, "a")
    model = live.json("GET", "/consort/state")[1]["models"][0]
    check(0 < model["keep_alive_s"] <= 7, "config: a number", model)
    check(live.stop() == 0, "it ends with 0", live.log)
    entries = [json.loads(line) for line in live.log.splitlines()]
    events = {entry["event"]: entry for entry in entries if "event" in entry}
    check(all("time" in entry and "message" in entry for entry in entries), "config: a flag",
          live.log)
    check(events["request"]["path"] == "/v1/completions" and events["request"]["status"] == 200 and
          events["request"]["model"] == "a" and events["request"]["output_tokens"] == 3 and
          events["opened"]["model"] == "a" and events["opened"]["context"] == 512,
          "--json-log has fields", live.log)
    home = Path(folder) / "home"
    home.mkdir()
    (home / "consort.yaml").write_text(f"models: [home={server.DEMO}]\n")
    live = server.Server(models=(), environment={"CONSORT_HOME": str(home)})
    check(live.stop() == 0 and "model home:" in live.log, "config: the home folder's file", live.log)
    live = server.Server(models=())
    check(live.stop() == 0 and "consort pull" in live.log, "no model: what to do", live.log)
    refused("an unknown key", "keep-alive: 3\nmemry: 1G\n", "2:1: unknown key 'memry', did you mean memory?")
    refused("a bad number", "queue: many\n", "1:8: queue takes a whole number")
    refused("a bad size", "memory: 1000%\n", "1:9: memory: ")
    refused("a flag that is none", "preload: maybe\n", "1:10: preload is true or false")
    refused("a list where one value is taken", "queue: [1, 2]\n", "1:8: queue takes one value")
    refused("a key twice", "queue: 1\nqueue: 2\n", "2:1: this key was there before")
    refused("an anchor", "queue: &a 1\nparallel: *a\n", "1:8: anchors")
    refused("broken YAML", "queue: [1\n", "2:1: ")
    refused("no map", "- queue\n", "1:1: a list of keys")
    refused("another service", "models:\n- model_name: x\n  litellm_params:\n    model: openai/gpt-4o\n",
            "4:12: openai/gpt-4o is with another service")
    refused("a model's unknown key",
            f"models:\n- model_name: x\n  litellm_params: {{model: {server.DEMO}, rpm: 3}}\n", "3:")
    refused("a model without a file", "models: [{model_name: x}]\n", "1:10: a model is NAME=FILE")


def main():
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.gguf"
        shutil.copy(server.DEMO, copy)
        least = least_mib()
        for part in (check_room_for_both, check_room_for_one, check_in_use, check_held, check_too_large):
            part(copy, least)
        check_queue()
        check_control(folder)
        check_awake(folder)
        check_config(folder)
    check_options()
    check_commands()
    check_drain()
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
