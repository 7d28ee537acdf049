#!/usr/bin/env python3
"""A model that lies on one node is computed by three: the others fetch their slices, once, resume a fetch
that was interrupted, and use what they have the next time."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nodes import Node, tap, wait_for  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
SHAPE = ["--layers", 6, "--width", 512, "--ffn", 1536, "--heads", 8, "--kv-heads", 4, "--vocab", 2048]


def text(node):
    status, body = node.json("POST", "/v1/completions", {
        "model": "big", "prompt": "a b c", "max_tokens": 20, "temperature": 0, "ignore_eos": True})
    if status != 200:
        raise tap.Failure(f"{node.name}: {status} {body}\n{node.tail()}", 1)
    return body["choices"][0]["text"]


def slices(node):
    """Names and sizes of the slices on a node; one of all may have the whole model beside them."""
    folder = Path(node.home.name, "cluster/objects")
    return {p.name: p.stat().st_size for p in folder.glob("*-*.gguf")} if folder.exists() else {}


def load(node, way, n_members):
    node.command("load", "big", "--placement", way)
    wait_for(f"it runs, {way}", lambda: any(
        i["state"] == "running" and len(i["members"]) == n_members for i in node.instances()))


def used(node):
    """The objects that the ranks of the instance compute with."""
    return [member[2] for member in node.instances()[0]["members"]]


def unload(node):
    node.command("unload", "big", "--now")
    wait_for("it is closed", lambda: not node.instances())


def main():
    a, b, c = nodes = [Node(name) for name in "abc"]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "big.gguf")
        subprocess.run([sys.executable, tap.ROOT / "tools/make-random-model", model, *map(str, SHAPE)],
                       check=True, capture_output=True)
        try:
            a.command("init")
            a.up(models=[f"big={model}"])
            for node in (b, c):
                token = json.loads(a.command("token", "--json", "--address", a.cluster_address()))["token"]
                node.command("join", token)
                node.up("--peer", a.cluster_address())
            wait_for("all see each other", lambda: all(n.names() == {"a", "b", "c"} for n in nodes))
            wait_for("the model is known", lambda: "big" in [
                m["id"] for m in b.json("GET", "/v1/models")[1]["data"]])
            alone = text(a)
            size = model.stat().st_size
            first = None
            for way in ("pipeline", "tensor"):
                load(a, way, 3)
                first = first or used(a)
                check([text(n) for n in nodes] == [alone] * 3, f"{way}: the same text through each node")
                own = [name.replace("/", "-") + ".gguf" for name in used(a) if "/" in name]
                fetched = [slices(n)[name] for n in (b, c) for name in own if name in slices(n)]
                check(len(own) == 2 and all(0 < f < size for f in fetched) and len(fetched) >= 2,
                      f"{way}: a worker computes with its slice alone", (own, fetched, size))
                unload(a)
            before = [slices(n) for n in (b, c)]
            load(a, "pipeline", 3)
            check(text(b) == alone, "and again")
            after = [slices(n) for n in (b, c)]
            new = [name.replace("/", "-") + ".gguf" for name in used(a) if "/" in name]
            check(used(a) != first or all(any(name in n for n in before) for name in new),
                  "what lies there is used again", (before, after))
        except tap.Failure as failure:
            check(False, "the suite runs to its end", str(failure) + "".join(
                f"\n--- {n.name}\n{n.tail()}" for n in nodes))
        finally:
            for node in nodes:
                node.down()
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
