#!/usr/bin/env python3
"""Two nodes that have the same model open, each by itself: a request goes to the one that has the beginning
of its prompt in its cache, or that has less to do; and when that one is killed, the answer goes on."""
import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nodes import Node, sanitized, tap, wait_for  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
LAYERS, WIDTH, HEADS = (3, 256, 4) if sanitized() else (6, 512, 8)
SHAPE = ["--layers", LAYERS, "--width", WIDTH, "--ffn", 3 * WIDTH, "--heads", HEADS, "--kv-heads", HEADS // 2,
         "--vocab", 2048]
N_TOKENS, LONG_TOKENS = (30, 240) if sanitized() else (250, 2500)


def prompt(first, n=300):
    """Token ids that begin like no other prompt of this suite."""
    return [3 + (first * 37 + i * 7) % 1000 for i in range(n)]


def body(tokens, n_tokens, **fields):
    return {"model": "big", "prompt": tokens, "max_tokens": n_tokens, "temperature": 1, "seed": 7,
            "ignore_eos": True, **fields}


def complete(node, tokens, n_tokens=2):
    status, answer = node.json("POST", "/v1/completions", body(tokens, n_tokens))
    if status != 200:
        raise tap.Failure(f"{node.name}: {status} {answer}\n{node.tail()}", 1)
    return answer["choices"][0]["text"]


def metric(node, name):
    connection = node.connect()
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return sum(map(int, re.findall(name + r"\{[^}]*\} (\d+)", text)))


def accepted(node):
    """Requests that the node's own scheduler took."""
    return metric(node, "requests_accepted_total")


class Stream(threading.Thread):
    """Reads one streamed answer."""

    def __init__(self, node, tokens, n_tokens=N_TOKENS):
        super().__init__(daemon=True)
        self.node, self.tokens, self.n_tokens = node, tokens, n_tokens
        self.text, self.count, self.fault, self.done = "", 0, None, False
        self.start()

    def run(self):
        try:
            connection = self.node.connect()
            connection.request("POST", "/v1/completions", json.dumps(body(self.tokens, self.n_tokens, stream=True)),
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
            while line := response.readline():
                if line.startswith(b"data: {"):
                    event = json.loads(line[len("data: "):])
                    self.text += event["choices"][0]["text"]
                    self.count += 1
                self.done |= line.startswith(b"data: [DONE]")
        except Exception as fault:  # whatever it was, the answer is not whole
            self.fault = fault

    def begun(self):
        wait_for("the answer begins", lambda: self.count > 5 or not self.is_alive())
        return self

    def whole(self):
        self.join(tap.TIMEOUT_S)
        return self.done and self.fault is None


def told(node, of):
    """What node knows of the replicas of another."""
    (found,) = (n for n in node.status()["nodes"] if n["name"] == of)
    return found


def start(a, b, model):
    a.command("init")
    a.up("--preload", models=[f"big={model}"])
    b.command("join", json.loads(a.command("token", "--json", "--address", a.cluster_address()))["token"])
    b.up("--preload", "--peer", a.cluster_address(), models=[f"big={model}"])
    wait_for("they know each other's replicas", lambda: a.names() == b.names() == {"a", "b"} and
             told(a, "b").get("replicas") == told(b, "a").get("replicas") == 1 and
             told(a, "a").get("replicas") == told(b, "b").get("replicas") == 1)


def check_prefix(a, b):
    complete(b, prompt(1))
    check(accepted(b) == 1 and accepted(a) == 0, "where nothing is cached, a node answers itself",
          (accepted(a), accepted(b)))
    wait_for("a hears of it", lambda: told(a, "b")["prefixes"] > 0 and told(a, "b")["waiting"] == 0)
    complete(a, prompt(1) + [5, 6, 7])
    check(accepted(b) == 2 and accepted(a) == 0, "the node that has the beginning of the prompt answers",
          (accepted(a), accepted(b)))
    complete(a, prompt(2))
    check(accepted(b) == 2 and accepted(a) == 1, "other prompts stay", (accepted(a), accepted(b)))


def check_queue(a, b):
    before = accepted(b)
    wait_for("nothing waits", lambda: told(a, "a")["waiting"] == told(a, "b")["waiting"] == 0)
    stream = Stream(a, prompt(3), LONG_TOKENS).begun()
    wait_for("a counts it", lambda: told(a, "a")["waiting"] > 0 or not stream.is_alive(), pause_s=0.01)
    complete(a, prompt(4))
    busy = metric(a, "requests_running") > 0  # the client may be far behind
    check(accepted(b) == before + 1 or not busy, "the node with less to do answers", (accepted(a), accepted(b)))
    check(stream.whole(), "and the other answer goes on", stream.fault)
    if not busy:
        print("# the long answer ended before the short one: nothing was shown")


def check_killed(a, b):
    wait_for("nothing waits", lambda: told(a, "a")["waiting"] == told(a, "b")["waiting"] == 0)
    before = accepted(b)
    stream = Stream(a, prompt(1) + [8], LONG_TOKENS).begun()
    check(accepted(b) == before + 1, "an answer comes from the other node", (accepted(a), accepted(b)))
    b.kill()
    whole = stream.whole()
    check(whole and stream.count >= LONG_TOKENS / 2, "it is killed: the client sees one whole answer",
          (stream.fault, stream.count, a.tail()))
    again = Stream(a, prompt(1) + [8], LONG_TOKENS)
    check(again.whole() and again.text == stream.text, "the same as from one node alone",
          (len(again.text), len(stream.text)))


def main():
    a, b = Node("a"), Node("b")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "big.gguf")
        subprocess.run([sys.executable, tap.ROOT / "tools/make-random-model", model, *map(str, SHAPE)],
                       check=True, capture_output=True)
        try:
            start(a, b, model)
            check_prefix(a, b)
            check_queue(a, b)
            check_killed(a, b)
            check(a.down() == 0, "a node ends with 0", a.tail())
        except tap.Failure as failure:
            check(False, "the suite runs to its end", f"{failure}\n{a.tail()}\n{b.tail()}")
        finally:
            for node in (a, b):
                node.down()
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
