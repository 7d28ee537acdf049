#!/usr/bin/env python3
"""Slices have two copies: the node with the model's file is killed, then another one, and those that are
left go on with what they have. Slices that nobody used for long are removed, and with consort rm all."""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nodes import Node, tap, wait_for  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
SHAPE = ["--layers", 6, "--width", 512, "--ffn", 1536, "--heads", 8, "--kv-heads", 4, "--vocab", 2048]
LONG_AGO_S = 30 * 86400


def text(node):
    status, body = node.json("POST", "/v1/completions", {
        "model": "big", "prompt": "a b c", "max_tokens": 20, "temperature": 0, "ignore_eos": True})
    if status != 200:
        raise tap.Failure(f"{node.name}: {status} {body}\n{node.tail()}", 1)
    return body["choices"][0]["text"]


def files(node):
    """Slices that lie on a node, without metadata."""
    folder = Path(node.home.name, "cluster/objects")
    return sorted(p for p in folder.glob("*.gguf") if not p.name.endswith("-meta.gguf"))


def running(node, n_members):
    return any(i["state"] == "running" and len(i["members"]) == n_members for i in node.instances())


def safe(node, n_slices):
    """Whether all slices of what runs survive the loss of any node; else what the status says of them."""
    copies = node.status()["copies"]
    return len(copies) == n_slices and all(c["safe"] for c in copies)


def start(nodes, model):
    a = nodes[0]
    a.command("init")
    a.up(models=[f"big={model}"])
    for node in nodes[1:]:
        token = json.loads(a.command("token", "--json", "--address", a.cluster_address()))["token"]
        node.command("join", token)
        # Two of the others each: a dead one separates nobody.
        peers = [word for other in nodes if other.process is not None
                 for word in ("--peer", other.cluster_address())]
        node.up(*peers)
    wait_for("all see each other", lambda: all(n.names() == set("abcd") for n in nodes))


def check_losses(nodes):
    a, b, c, d = nodes
    alone = text(a)
    a.command("load", "big", "--placement", "pipeline")
    wait_for("it runs on four nodes", lambda: running(a, 4))
    check(text(b) == alone, "a pipeline over four nodes")
    check(len(files(a)) == 0 and all(len(files(n)) >= 1 for n in (b, c, d)), "each has its slice")
    wait_for("every slice has two copies", lambda: safe(b, 4))
    check(True, "every slice has two copies")

    a.kill()
    wait_for("the others go on", lambda: running(b, 3))
    check(text(b) == text(c) == alone, "without the node that has the file the text is the same")
    wait_for("every slice has two copies again", lambda: safe(b, 3))
    left = {node["name"] for node in b.status()["nodes"] if node["state"] == "up"}
    check(left == set("bcd"), "one node is lost", left)

    begun_s = time.monotonic()
    d.kill()
    check(text(c) == alone, "one more is killed, and two go on from copies")
    print(f"# {time.monotonic() - begun_s:.1f} s from the second kill to the end of an answer of 20 tokens")
    wait_for("two run", lambda: running(b, 2))
    wait_for("every slice has two copies once more", lambda: safe(b, 2))

    c.kill()
    wait_for("one is left", lambda: b.names() == {"b"})
    check(text(b) == alone, "the last one has all of it")
    wait_for("single copies are told", lambda: any(
        p["kind"] == "single" and "only b has" in p["text"] for p in b.status()["problems"]))
    check("! only b has layers" in b.command("status"), "slices that one node has are told")


def check_cleaning(nodes, model):
    a, b, c, d = nodes
    listed = json.loads(b.command("list", "--slices", "--json"))
    check(len(listed) == len(files(b)) and all(s["model"] == "big" and s["size"] > 0 for s in listed),
          "consort list shows the slices", listed)
    check("layers" in b.command("list"), "in its table too")
    b.command("unload", "big", "--now")
    wait_for("it is closed", lambda: not b.instances())
    for path in files(b):
        os.utime(path, (time.time() - LONG_AGO_S,) * 2)
    kept = len(files(b))
    time.sleep(1)
    a.up("--peer", b.cluster_address(), models=[f"big={model}"])
    wait_for("a is back", lambda: b.names() == {"a", "b"})
    check(kept > 0, "the last copies of a model stay", kept)
    wait_for("old slices go", lambda: not files(b))
    check(True, "once its file is there again, old slices go")

    c.up("--peer", a.cluster_address(), "--peer", b.cluster_address())
    wait_for("c is back", lambda: a.names() == b.names() == {"a", "b", "c"})
    wait_for("it learns that the model was unloaded", lambda: not a.instances())
    a.command("load", "big", "--placement", "pipeline")
    wait_for("it runs on three nodes", lambda: running(a, 3))
    code, _, said = b.command("rm", "big", check=False)
    check(code == 1 and "unload" in said, "what runs is not removed", said)
    a.command("unload", "big", "--now")
    wait_for("it is closed", lambda: not a.instances() and not b.instances())
    check(len(files(b)) > 0 and len(files(c)) > 0, "slices are kept for the next time")
    b.command("rm", "big")
    wait_for("all slices are removed", lambda: not files(b) and not files(c))
    check(True, "consort rm removes slices on all nodes")

    a.command("load", "big", "--placement", "pipeline", "--full")
    wait_for("it runs on three nodes", lambda: running(a, 3))
    sizes = [[p.stat().st_size for p in files(n)] for n in (b, c)]
    check(all(model.stat().st_size in s for s in sizes), "--full: each node has the whole file", sizes)


def main():
    nodes = [Node(name) for name in "abcd"]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "big.gguf")
        subprocess.run([sys.executable, tap.ROOT / "tools/make-random-model", model, *map(str, SHAPE)],
                       check=True, capture_output=True)
        try:
            start(nodes, model)
            check_losses(nodes)
            check_cleaning(nodes, model)
        except tap.Failure as failure:
            check(False, "the suite runs to its end", str(failure) + "".join(
                f"\n--- {n.name}\n{n.tail()}" for n in nodes))
        finally:
            for node in nodes:
                node.down()
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
