#!/usr/bin/env python3
"""Three nodes on loopback, each with the model: a key's limits hold for all of them together, a key that
is revoked on one is refused on all, and consort usage sums up what each has counted."""
import json
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nodes import DEMO, Node, tap, wait_for  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
PER_MINUTE = 30
DEADLINE_S = 120


def ask(node, key):
    """The status of a short answer, and its headers."""
    connection = node.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps({
        "model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.headers


def listed(node, key):
    return node.json("GET", "/v1/models", key=key)[0]


def begin(a, b, c):
    a.command("init")
    a.up("--preload", models=[f"demo={DEMO}"])
    for node in (b, c):
        node.command("join", json.loads(
            a.command("token", "--json", "--address", a.cluster_address()))["token"])
        node.up("--preload", "--peer", a.cluster_address(), models=[f"demo={DEMO}"])
    wait_for("all nodes see each other", lambda: a.names() == b.names() == c.names() == {"a", "b", "c"})


def make(nodes, name, *limits):
    """A key that holds on all nodes."""
    key = nodes[0].command("key", "create", name, *limits).split()[-1]
    wait_for("the key holds on all nodes", lambda: all(
        listed(node, None) == 401 and listed(node, key) == 200 for node in nodes))
    return key


def check_together(nodes):
    """All nodes are asked as fast as they answer, until more came through than one node lets through."""
    key = make(nodes, "ann", "--requests-per-minute", PER_MINUTE)
    answers, stop = {node.name: [] for node in nodes}, threading.Event()
    began = time.monotonic()

    def hammer(node):
        while not stop.is_set():
            answers[node.name].append(ask(node, key))

    threads = [threading.Thread(target=hammer, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    passed = lambda: sum(status == 200 for each in answers.values() for status, _ in each)
    try:
        wait_for("the whole limit is used", lambda: passed() >= PER_MINUTE, DEADLINE_S)
        time.sleep(10)  # so that what comes back in the meantime is shared, too
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    took = time.monotonic() - began
    most = PER_MINUTE * (1 + took / 60) + len(nodes)
    each = {name: sum(status == 200 for status, _ in got) for name, got in answers.items()}
    refused = [headers for got in answers.values() for status, headers in got if status == 429]
    others = {status for got in answers.values() for status, _ in got} - {200, 429}
    print(f"# {PER_MINUTE} requests a minute, three nodes, {took:.1f} s: {passed()} let through {each}, "
          f"{len(refused)} refused; one node alone may let {PER_MINUTE * (1 + took / 60):.1f} through")
    check(passed() <= most and not others, "three nodes let no more through than one", (each, took, others))
    check(all(int(headers["Retry-After"]) >= 1 and headers["x-ratelimit-limit-requests"] == str(PER_MINUTE)
              for headers in refused) and refused, "what is too much is told when to come again")
    return passed()


def check_alone(nodes):
    """A node that is asked alone uses the whole limit."""
    key = make(nodes, "bob", "--requests-per-minute", PER_MINUTE)
    began, n_passed, n_refused = time.monotonic(), 0, 0
    while n_passed < PER_MINUTE and time.monotonic() - began < DEADLINE_S:
        status, _ = ask(nodes[1], key)
        n_passed += status == 200
        n_refused += status == 429
    took = time.monotonic() - began
    print(f"# one of three nodes: {n_passed} of {PER_MINUTE} within {took:.2f} s, {n_refused} refused before")
    check(n_passed == PER_MINUTE, "one node that is asked alone can use all of it", (n_passed, n_refused))
    return n_passed


def check_revoked(nodes):
    key = make(nodes, "zoe")
    for node in nodes:
        ask(node, key)
    wait_for("it is in the file", lambda: "zoe" in nodes[1].command("key", "list"))
    nodes[1].command("key", "revoke", "zoe")
    began, took = time.monotonic(), {}

    def refused():
        for node in nodes:
            if node.name not in took and listed(node, key) == 401:
                took[node.name] = time.monotonic() - began
        return len(took) == len(nodes)

    wait_for("all refuse the key", refused, pause_s=0.01)
    print("# a key revoked on b is refused after: " +
          ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in sorted(took.items())))
    check(True, "a key that is revoked on one node is refused on all")
    check(ask(nodes[2], key)[0] == 401, "for requests as for lists")


def rows(node, *options):
    return json.loads(node.command("usage", "--json", *options))


def check_usage(nodes, ann, bob):
    a, b, c = nodes
    count = lambda found, **where: sum(row["requests"] for row in found
                                       if all(row.get(k) == v for k, v in where.items()))
    wait_for("all that was used is written", lambda: count(rows(a), key="ann") == ann)
    check(rows(a) == rows(b) == rows(c), "each node shows the sum of all")
    by_node = rows(a, "--by-node")
    check(count(by_node, key="ann") == ann and {row["node"] for row in by_node} == {"a", "b", "c"} and
          count(by_node, key="bob", node="b") == bob and count(by_node, key="bob", node="a") == 0,
          "--by-node shows who counted it", by_node)
    check(count(rows(a, "--node", "b"), key="bob") == bob and count(rows(a, "--node", "c"), key="bob") == 0,
          "--node shows one of them")
    code, _, said = a.command("usage", "--node", "nobody", check=False)
    check(code == 1 and "no node nobody" in said, "a node that is not there is told", said)
    check("NODE" in a.command("usage", "--by-node") and "NODE" not in a.command("usage"), "as a table")
    c.kill()
    wait_for("its end is noticed", lambda: a.names() == {"a", "b"})
    code, out, said = a.command("usage", "--json", check=False)
    check(code == 0 and "what c counted is missing" in said and count(json.loads(out), key="bob") == bob,
          "what a node counted that is down is missing, and that is told", said)
    b.down()
    code, out, said = b.command("usage", "--json", check=False)
    check(code == 0 and "only what this machine counted" in said and count(json.loads(out), key="bob") == bob,
          "without a server a node shows its own", said)


def main():
    nodes = [Node("a"), Node("b"), Node("c")]
    try:
        begin(*nodes)
        ann = check_together(nodes)
        bob = check_alone(nodes)
        check_revoked(nodes)
        check_usage(nodes, ann, bob)
        check(nodes[0].down() == 0, "a node ends with 0", nodes[0].tail())
    except tap.Failure as failure:
        check(False, "the suite runs to its end", str(failure))
    finally:
        for node in nodes:
            node.down()
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
