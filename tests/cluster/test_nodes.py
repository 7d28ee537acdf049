#!/usr/bin/env python3
"""Two and three nodes on loopback: joining, a model spread over them, an answer through each, and what
happens when one of them ends."""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nodes import DEMO, Node, tap, wait_for  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
QUESTION = "What is consort?"


def join(first, second):
    """second joins the cluster of first, which runs."""
    token = json.loads(first.command("token", "--json", "--address", first.cluster_address()))["token"]
    second.command("join", token)
    return token


def check_joining(a, b):
    a.command("init")
    code, _, said = a.command("init", check=False)
    check(code == 1 and "already" in said, "a cluster is begun once", said)
    code, _, said = a.command("token", check=False)
    check(code == 1 and "no server" in said, "a token needs a server, or an address", said)
    a.up(models=[f"demo={DEMO}"])
    token = join(a, b)
    code, _, said = b.command("join", token, check=False)
    check(code == 1 and "already" in said, "a node joins once", said)
    code, _, said = Node("thief").command("join", token, check=False)
    check(code == 1, "a token lets one machine in", said)
    code, _, said = Node("lost").command("join", "consort-1-nonsense", check=False)
    check(code == 1 and "token" in said, "what is no token is told", said)
    b.up("--peer", a.cluster_address())
    wait_for("both nodes see each other", lambda: a.names() == b.names() == {"a", "b"})
    check(True, "two nodes find each other")
    wait_for("the models of the others are known", lambda: "demo" in [
        m["id"] for m in b.json("GET", "/v1/models")[1]["data"]])
    check(True, "a node offers the models of the others")


def check_answers(a, b, way):
    alone = a.chat(QUESTION)
    a.command("load", "demo", "--placement", way)
    wait_for("the model runs", lambda: any(i["state"] == "running" for i in a.instances()))
    members = a.instances()[0]["members"]
    check(len(members) == 2, f"{way}: two nodes compute it", members)
    check(a.chat(QUESTION) == alone, f"{way}: the same answer through the one")
    check(b.chat(QUESTION) == alone, f"{way}: and through the other")
    a.command("unload", "demo", "--now")
    wait_for("the model is closed", lambda: not a.instances())


def check_plan(a):
    """Without a file of machines, those of the cluster are planned for, as they have measured themselves."""
    wait_for("both have measured themselves", lambda: all(n["rates"].get("Q4_0", 0) > 0 and n["flops"] > 0
                                                          for n in a.status()["nodes"]))
    told = json.loads(a.command("plan", DEMO, "--json", "--all"))
    check([node["name"] for node in told["nodes"]] == ["a", "b"], "the nodes are planned for", told["nodes"])
    bandwidths = {n["name"]: n["bandwidth"] for n in a.status()["nodes"]}
    check(all(0 < node["read_bytes_per_second"] <= bandwidths[node["name"]] * 1.001 for node in told["nodes"]),
          "at what products reach of their read rates", told["nodes"])
    check("a alone" in a.command("plan", DEMO, "--server", "http://127.0.0.1:" + str(a.port)), "a server may be named")


def check_keys(a, b):
    """A key that is made on one node holds on all, and not any more once it is revoked anywhere."""
    key = a.command("key", "create", "ann").split()[-1]
    models = lambda node, given: node.json("GET", "/v1/models", key=given)[0]
    wait_for("both ask for a key", lambda: models(a, None) == models(b, None) == 401)
    wait_for("both take it", lambda: models(a, key) == models(b, key) == 200)
    check(True, "a key that is made on one node holds on all")
    wait_for("it is in the file", lambda: "ann" in b.command("key", "list"))
    b.command("key", "revoke", "ann")
    wait_for("both refuse it", lambda: models(a, key) == models(b, key) == 401)
    check(True, "and is refused on all once it is revoked on one")
    again = b.command("key", "create", "ann").split()[-1]
    wait_for("a new one of that name holds", lambda: models(a, again) == models(b, again) == 200)
    check(models(a, key) == 401, "a revoked key stays revoked")
    cluster = lambda node, given: node.json("GET", "/consort/cluster", key=given)
    told = lambda node, given: [m["name"] for n in cluster(node, given)[1]["nodes"] for m in n["models"]]
    other = a.command("key", "create", "bob", "--models", "another").split()[-1]
    wait_for("a key for one model holds", lambda: models(a, other) == 200)
    wait_for("the other node's key holds beside it", lambda: models(a, again) == 200)
    check(models(a, again) == 200, "keys of other nodes stay when a node's own file changes")
    check(told(b, again) == ["demo"] and told(a, other) == [], "a key that may not use a model does not see it")
    check(cluster(a, None)[0] == 401, "without a key nobody sees the cluster")


def main():
    a, b = Node("a"), Node("b")
    try:
        check_joining(a, b)
        check_plan(a)
        check_answers(a, b, "pipeline")
        check_answers(a, b, "tensor")
        check_keys(a, b)
        check(b.down() == 0, "a node ends with 0", b.tail())
        wait_for("its end is noticed", lambda: a.names() == {"a"})
        check(a.down() == 0, "and ends with 0", a.tail())
    except tap.Failure as failure:
        check(False, "the suite runs to its end", str(failure))
    finally:
        for node in (a, b):
            node.down()
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
