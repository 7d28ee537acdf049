#!/usr/bin/env python3
"""Three nodes that compute one model: a worker is killed, hung, and cut off while a client reads its
answer, then the owner; the client sees one whole answer each time."""
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nodes import Node, tap, wait_for  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
LEAST_TOKENS, MOST_TOKENS, ANSWER_S = 80, 400, 3
SHAPE = ["--layers", 6, "--width", 512, "--ffn", 1536, "--heads", 8, "--kv-heads", 4, "--vocab", 2048]


class Stream(threading.Thread):
    """Reads one streamed answer."""

    def __init__(self, node, n_tokens):
        super().__init__(daemon=True)
        self.node, self.n_tokens, self.text, self.count, self.error, self.done = node, n_tokens, "", 0, None, False

    def run(self):
        try:
            connection = self.node.connect()
            connection.request("POST", "/v1/completions", json.dumps({
                "model": "big", "prompt": "a b c", "max_tokens": self.n_tokens, "temperature": 1, "seed": 7,
                "ignore_eos": True, "stream": True}), {"Content-Type": "application/json"})
            response = connection.getresponse()
            while line := response.readline():
                if line.startswith(b"data: {"):
                    event = json.loads(line[len("data: "):])
                    if "error" in event:
                        self.error = event["error"]
                        return
                    self.text += event["choices"][0]["text"]
                    self.count += 1
                self.done |= line.startswith(b"data: [DONE]")
        except (OSError, http.client.HTTPException, ValueError) as fault:
            self.error = fault

    def wait(self):
        self.join(120)
        return self.done and self.error is None


def running(node, n_members):
    return any(i["state"] == "running" and len(i["members"]) == n_members for i in node.instances())


def member_names(node):
    """Of the running instance's nodes, the owner last. Who comes back may begin another, which gives way."""
    status = node.status()
    names = {n["id"]: n["name"] for n in status["nodes"]}
    (instance,) = (i for i in status["instances"] if i["state"] == "running")
    members = [names[m[0]] for m in instance["members"]]
    return [m for i, m in enumerate(members) if i != instance["owner"]], members[instance["owner"]]


def length_of_answers(node):
    """Tokens of answers that are long enough to be broken off in the middle, however slow the program is."""
    begin_s, stream = time.monotonic(), Stream(node, LEAST_TOKENS)
    stream.start()
    check(stream.wait(), "an answer through three nodes", stream.error)
    rate = LEAST_TOKENS / (time.monotonic() - begin_s)
    return int(min(max(rate * ANSWER_S, LEAST_TOKENS), MOST_TOKENS))


def begin(node, n_tokens):
    stream = Stream(node, n_tokens)
    stream.start()
    wait_for("the answer begins", lambda: stream.count > 20 or stream.error or not stream.is_alive())
    return stream


def start(nodes, first, model, others):
    first.command("init")
    first.up(models=[f"big={model}"])
    for node in others:
        token = json.loads(first.command("token", "--json", "--address", first.cluster_address()))["token"]
        node.command("join", token)
        node.up("--peer", first.cluster_address(), models=[f"big={model}"])
    wait_for("all see each other", lambda: all(n.names() == {m.name for m in nodes} for n in nodes))


def main():
    nodes = [Node(name) for name in "abc"]
    by_name = {node.name: node for node in nodes}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "big.gguf")
        subprocess.run([sys.executable, tap.ROOT / "tools/make-random-model", model, *map(str, SHAPE)],
                       check=True, capture_output=True)
        try:
            start(nodes, nodes[0], model, nodes[1:])
            nodes[0].command("load", "big", "--placement", "pipeline")
            wait_for("it runs on three nodes", lambda: running(nodes[0], 3))
            workers, owner = member_names(nodes[0])
            n_tokens = length_of_answers(nodes[0])
            whole = begin(nodes[0], n_tokens)
            check(whole.wait() and len(whole.text) > 0, "a whole answer to compare with", whole.error)

            client = by_name[owner]
            stream = begin(client, n_tokens)
            by_name[workers[0]].kill()
            check(stream.wait() and stream.text == whole.text, "a worker is killed: one whole answer",
                  (stream.error, len(stream.text), len(whole.text), client.tail()))
            wait_for("two nodes go on", lambda: running(client, 2))
            back = by_name[workers[0]]
            back.up("--peer", client.cluster_address(), models=[f"big={model}"])
            wait_for("it is back", lambda: client.names() == {"a", "b", "c"})
            check(True, "a node that comes back is seen")

            left, owner = member_names(client)
            gateway = by_name[left[0]]
            stream = begin(gateway, n_tokens)
            by_name[owner].kill()
            check(stream.wait() and stream.text == whole.text, "the owner is killed: one whole answer",
                  (stream.error, len(stream.text), len(whole.text), gateway.tail()))
        except tap.Failure as failure:
            check(False, "the suite runs to its end", str(failure) + "".join(
                f"\n--- {n.name}\n{n.tail()}" for n in nodes))
        finally:
            for node in nodes:
                node.down()
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
