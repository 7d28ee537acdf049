#!/usr/bin/env python3
"""Two hosts that are joined by two networks, of which the first is slow: data takes the fast one, the slow one
where that is wanted, and what is left when an interface goes down."""
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nodes import DEMO, RUN, Node, close_hosts, hosts, tap, wait_for  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
QUESTION = "What is consort?"
BRIDGE = f"cf{RUN}"
NETWORK = f"10.{192 + RUN // 256 % 32}.{RUN % 256}"
SLOW_BYTES = 50e6 / 8


def paths(node):
    """Of the pair, the one for data first; nothing as long as not all are known."""
    links = node.status()["links"]
    found = links[0]["paths"] if links else []
    return found if all(path["state"] != "unknown" for path in found) else []


def over(node, name):
    found = paths(node)
    return bool(found) and found[0]["interface"] == name and found[0]["state"] == "good"


def both_over(nodes, name):
    return all(over(node, name) for node in nodes)


def runs(node, count=2):
    return any(i["state"] == "running" and len(i["members"]) == count for i in node.instances())


def load(a, alone, name, nodes):
    """The model over both nodes; the interface that the bytes took."""
    before = [n.host.sent(device) for n in nodes for device in ("eth0", "eth1")]
    a.command("load", "demo", "--placement", "pipeline")
    wait_for("it runs on both hosts", lambda: runs(a))
    check(nodes[1].chat(QUESTION) == alone, f"over {name}: the same answer")
    after = [n.host.sent(device) for n in nodes for device in ("eth0", "eth1")]
    sent = [b - a for a, b in zip(before, after)]
    return {"eth0": sent[0] + sent[2], "eth1": sent[1] + sent[3]}


def unload(a):
    a.command("unload", "demo", "--now")
    wait_for("it is closed", lambda: not a.instances())


def check_down(nodes, alone):
    """While somebody asks again and again, the fast interface goes."""
    a, b = nodes
    answers, end = [], threading.Event()

    def ask():
        while not end.is_set():
            answers.append(b.chat(QUESTION))
            time.sleep(0.05)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        wait_for("it is asked", lambda: answers)
        b.host.set_link("eth1", False)
        wait_for("both go on over the slow interface", lambda: both_over(nodes, "eth0"))
        n = len(answers)
        wait_for("it is answered", lambda: len(answers) > n + 2)
    finally:
        end.set()
        asking.join()
    check(set(answers) == {alone}, "no answer suffers when the fast interface goes down", set(answers))


def check_up(nodes):
    nodes[1].host.set_link("eth1", True)
    wait_for("the fast interface is used again", lambda: both_over(nodes, "eth1"))
    check(True, "it is found when it comes back")


def check_lost_way(nodes, alone):
    """The control link is over the slow interface now: what goes down is the way of the data alone."""
    a, b = nodes
    load(a, alone, "eth1", nodes)
    epoch = a.instances()[0]["epoch"]
    n_lost = a.read_log().count("lost b") + b.read_log().count("lost a")
    check_down(nodes, alone)
    wait_for("the model runs on both again", lambda: runs(a) and a.instances()[0]["epoch"] > epoch)
    check(a.read_log().count("lost b") + b.read_log().count("lost a") == n_lost,
          "the ranks are joined anew, and no node is lost for it")


def check_pin(nodes, alone):
    a, b = nodes
    b.down()
    Path(b.home.name, "consort.yaml").write_text("data_interface: eth0\n")
    b.up()
    wait_for("the pinned interface is taken by both", lambda: both_over(nodes, "eth0"))
    check(True, "a pinned interface is taken, though it is slower")
    wait_for("both are measured", lambda: len(paths(a)) == 2)
    found = a.command("doctor", check=False)[1]
    check("data-interface" in found and "eth1 would" in found, "doctor says what it costs", found)
    sent = load(a, alone, "eth0", nodes)
    check(sent["eth0"] > sent["eth1"], "and the bytes take it", sent)
    unload(a)
    code, _, said = b.command("up", "--data-interface", "eth9", check=False)
    check(code == 1 and "eth0, eth1" in said, "an interface that is not there is told, and which are", said)


def run(nodes):
    a, b = nodes
    a.command("init")
    a.up(models=[f"demo={DEMO}"])
    b.command("join", json.loads(a.command("token", "--json"))["token"])
    b.up()
    wait_for("they find each other", lambda: a.names() == b.names() == {"a", "b"})
    wait_for("the fast interface is taken by both", lambda: both_over(nodes, "eth1"))
    wait_for("both ways are measured", lambda: len(paths(a)) == len(paths(b)) == 2)
    fast, slow = paths(a)
    check(fast["bandwidth"] > 2 * SLOW_BYTES > slow["bandwidth"] > SLOW_BYTES / 4, "both are measured", paths(a))
    print(f"# eth1 {fast['bandwidth'] / 1e6:.1f} MB/s, eth0 {slow['bandwidth'] / 1e6:.1f} MB/s")
    wait_for("the model is known", lambda: "demo" in [m["id"] for m in b.json("GET", "/v1/models")[1]["data"]])
    alone = a.chat(QUESTION)
    sent = load(a, alone, "eth1", nodes)
    print(f"# sent: {sent}")
    check(sent["eth1"] > sent["eth0"], "data takes the fast interface, though the slow one is first", sent)
    check("eth1" in a.command("status"), "status shows it")
    check_down(nodes, alone)
    unload(a)
    check_up(nodes)
    check_lost_way(nodes, alone)
    unload(a)
    check_up(nodes)
    check_pin(nodes, alone)


def main():
    all_hosts = hosts(2)
    if all_hosts is None:
        REPORT.skip("two networks", "network namespaces need root and iproute2")
        return REPORT.end()
    nodes = [Node(name, host) for name, host in zip("ab", all_hosts)]
    try:
        for command in (["add", BRIDGE, "type", "bridge", "mcast_snooping", "0"], ["set", BRIDGE, "up"]):
            subprocess.run(["ip", "link", *command], check=True, capture_output=True)
        for host in all_hosts:
            host.add_interface("eth1", BRIDGE, NETWORK)
        if all(host.shape("eth0", "50mbit") for host in all_hosts):
            run(nodes)
        else:
            REPORT.skip("two networks", "tc cannot shape an interface here")
    except tap.Failure as failure:
        check(False, "the suite runs to its end", str(failure) + "".join(
            f"\n--- {n.name}\n{n.tail()}" for n in nodes))
    finally:
        for node in nodes:
            node.down()
        close_hosts(all_hosts)
        subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True)
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
