#!/usr/bin/env python3
"""Three hosts with networks of their own: they find each other without being told where, compute a model
that none of them could hold alone, and go on when a host is cut off."""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nodes import DEMO, Node, close_hosts, hosts, tap, wait_for  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
QUESTION = "What is consort?"


def join(first, second):
    token = json.loads(first.command("token", "--json"))["token"]
    second.command("join", token)
    second.up()


def main():
    all_hosts = hosts(3)
    if all_hosts is None:
        REPORT.skip("three hosts", "network namespaces need root and iproute2")
        return REPORT.end()
    nodes = [Node(name, host) for name, host in zip("abc", all_hosts)]
    a, b, c = nodes
    try:
        a.command("init")
        a.up(models=[f"demo={DEMO}"])
        for node in (b, c):
            join(a, node)
        wait_for("all find each other", lambda: all(n.names() == {"a", "b", "c"} for n in nodes))
        check(True, "three hosts find each other by beacons")
        wait_for("the model is known", lambda: "demo" in [
            m["id"] for m in c.json("GET", "/v1/models")[1]["data"]])
        alone = a.chat(QUESTION)
        a.command("load", "demo", "--placement", "pipeline")
        wait_for("it runs on three hosts", lambda: any(
            i["state"] == "running" and len(i["members"]) == 3 for i in a.instances()))
        check([n.chat(QUESTION) for n in nodes] == [alone] * 3, "each of them gives the answer")
        c.host.cut()
        wait_for("a host that is cut off is missed", lambda: a.names() == {"a", "b"})
        wait_for("two go on", lambda: any(
            i["state"] == "running" and len(i["members"]) == 2 for i in a.instances()))
        check(a.chat(QUESTION) == alone and b.chat(QUESTION) == alone, "two hosts go on")
        c.host.cut(up=True)
        wait_for("it is found again", lambda: a.names() == c.names() == {"a", "b", "c"})
        check(c.chat(QUESTION) == alone, "and serves again")
        b.pause()
        wait_for("a host that hangs is missed", lambda: a.names() == {"a", "c"})
        wait_for("the others go on", lambda: any(
            i["state"] == "running" for i in a.instances()))
        check(a.chat(QUESTION) == alone, "without a host that hangs")
        b.pause(False)
    except tap.Failure as failure:
        check(False, "the suite runs to its end", str(failure) + "".join(
            f"\n--- {n.name}\n{n.tail()}" for n in nodes))
    finally:
        for node in nodes:
            node.down()
        close_hosts(all_hosts)
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
