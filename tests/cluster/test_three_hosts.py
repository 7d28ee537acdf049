#!/usr/bin/env python3
"""Three hosts, each with a network, a store and a limit of memory of its own, that need nothing but a join
token: a model that none of them could hold is fetched once, spread, and served to the official OpenAI
client, who sees one whole answer whatever is killed, hangs, is cut off or runs out of memory meanwhile."""
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / name) for name in ("cluster", "clients", "store")]
import test_clients as clients  # noqa: E402
from mirror import Mirror  # noqa: E402
from nodes import NETWORK, Node, close_hosts, hosts, sanitized, tap, wait_for  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
# 152 MB, against 160 MB of a host, of which a quarter is left to the system, and 32 MiB stay free. Under a
# sanitizer, which is slow, 64 MB against what is left of 72.
SHAPE = ["--vocab", 2048, "--untied", *(
    ["--layers", 14, "--width", 384, "--ffn", 1536, "--heads", 6, "--kv-heads", 3] if sanitized() else
    ["--layers", 12, "--width", 640, "--ffn", 2560, "--heads", 10, "--kv-heads", 5])]
HOST_BYTES, USABLE = 160 << 20, "72M" if sanitized() else "120M"
QUESTION, NAME = "What lies beyond the hills?", "big"
# Of an answer, and of these before something happens. A sanitizer makes them slow.
TOKENS, BROKEN_AT = (40, 8) if sanitized() else (120, 15)


class Chat(threading.Thread):
    """One answer that the OpenAI client reads on the host of a node, from that node."""

    def __init__(self, node, n_tokens=TOKENS, model=NAME):
        super().__init__(daemon=True)
        self.node, self.text, self.times, self.end = node, "", [], None
        port = 4000 if node.host.number else node.port
        words = [*node.host.prefix, "node", "stream.mjs", f"http://{node.host.address}:{port}/v1", model,
                 str(n_tokens), QUESTION]
        self.process = subprocess.Popen(words, cwd=clients.FOLDER, stdout=subprocess.PIPE, text=True)
        self.start()

    def run(self):
        for line in self.process.stdout:
            told = json.loads(line)
            if "piece" in told:
                self.text += told["piece"]
                self.times.append(time.monotonic())
            else:
                self.end = told
        self.process.wait()

    def wait(self):
        """Until it has ended; itself."""
        self.join(tap.TIMEOUT_S)
        return self

    def begun(self):
        wait_for("the answer begins", lambda: len(self.times) >= BROKEN_AT or not self.is_alive())
        return self

    def whole(self, n_tokens=TOKENS):
        return self.end == {"reason": "length", "tokens": n_tokens}

    def pause_s(self, since):
        """The longest time without a token after that."""
        times = [since, *(t for t in self.times if t > since)]
        return max((b - a for a, b in zip(times, times[1:])), default=float("nan"))


def running(node):
    """The running instance as a node sees it: the names of its workers and of its owner, or None."""
    status = node.status()
    names = {n["id"]: n["name"] for n in status["nodes"]}
    found = [i for i in status["instances"] if i["state"] == "running"]
    if len(found) != 1 or len(status["instances"]) != 1:
        return None
    members = [names[m[0]] for m in found[0]["members"]]
    owner = members.pop(found[0]["owner"])
    return members, owner


def unlimited(host):
    """Why no control group limits the memory of a host, or None."""
    if host.group is None:
        return f"what {sanitized()} needs of memory is not known"
    return host.group.why


class Story:
    def __init__(self, all_hosts, model, mirror):
        self.model, self.mirror = model, mirror
        self.nodes = [Node(name, host) for name, host in zip("abc", all_hosts)]
        self.by_name = {node.name: node for node in self.nodes}
        self.whole = None

    def up(self, node):
        """Starts a node; where no group limits its memory, an option does."""
        limit = ["--memory", USABLE] if unlimited(node.host) else []
        node.up("--ctx", 1024, "--threads", 1, *limit)

    def all_up(self):
        wait_for("all see each other", lambda: all(
            n.names() == {m.name for m in self.nodes} for n in self.nodes))

    def join(self):
        a = self.nodes[0]
        a.command("init")
        self.up(a)
        for node in self.nodes[1:]:
            node.command("join", json.loads(a.command("token", "--json"))["token"])
            self.up(node)
        self.all_up()
        check(True, "three hosts join and find each other without being told where")

    def fetch(self):
        a, size = self.nodes[0], self.model.stat().st_size
        a.command("pull", f"{self.mirror.url}/big.gguf", "--as", NAME)
        limits = [n["memory_limit"] for n in a.status()["nodes"]]
        check(sanitized() or max(limits) < size, "no host may use as much memory as the model has bytes",
              (limits, size))

    def place(self):
        a = self.nodes[0]
        self.whole = Chat(a).wait()
        check(self.whole.whole(), "the OpenAI client gets an answer from the host that has the model",
              self.whole.end)
        (instance,) = a.instances()
        check(len(instance["members"]) > 1, "because it is spread over several", instance)
        a.command("load", NAME)
        chat = Chat(self.nodes[1]).wait()
        check(chat.whole() and chat.text == self.whole.text, "and the same from another", (chat.end, chat.text))
        size = self.model.stat().st_size
        check(size <= self.mirror.sent_bytes <= size * 1.02, "it came from outside once",
              (self.mirror.sent_bytes, size))
        told = wait_for("what was reached is told", lambda: next((
            i for i in self.nodes[2].instances() if i["reached"] > 0), None))
        check(told["predicted"] > 0, "the rate that is reached is told beside the predicted one", told)
        versions = [n["version"] for n in a.status()["nodes"]]
        check(versions == [a.command("--version").split()[1]] * 3, "so are the versions of all", versions)
        print(f"# predicted {told['predicted']:.0f} tokens/s, reached {told['reached']:.0f}", flush=True)

    def compare(self):
        """What one machine without limits says."""
        alone = Node("alone")
        try:
            alone.up("--ctx", 1024, "--no-cluster", models=[f"{NAME}={self.model}"])
            chat = Chat(alone).wait()
            check(chat.whole() and chat.text == self.whole.text, "one large machine gives the same answer",
                  (chat.end, chat.text, self.whole.text))
        finally:
            alone.down()

    def disturb(self, what, choose, harm):
        """An answer is read from one of the nodes while something befalls another."""
        workers, owner = wait_for("it runs", lambda: running(self.nodes[0]), pause_s=0.2)
        victim, client = (self.by_name[name] for name in choose(workers, owner))
        chat = Chat(client).begun()
        since = time.monotonic()
        harm(victim)
        chat.wait()
        check(chat.whole() and chat.text == self.whole.text, f"{what}: one whole answer",
              (chat.end, len(chat.times), chat.text, self.whole.text))
        print(f"# {what}: {victim.name}, read at {client.name}: {chat.pause_s(since):.2f} s without a token",
              flush=True)
        return victim

    def idle(self, workers, owner):
        """A node that computes nothing now, else the owner."""
        return next((n.name for n in self.nodes if n.name not in (*workers, owner)), owner)

    def again(self, node):
        """A node that was lost takes part again, and no slice has but one copy."""
        if node.process.poll() is not None:
            self.up(node)
        self.all_up()

        def safe():
            copies = self.nodes[0].status()["copies"]
            return copies and all(c["safe"] for c in copies)
        wait_for("every slice has two copies", safe, pause_s=0.2)

    def out_of_memory(self, node):
        if unlimited(node.host):
            REPORT.skip("a worker runs out of memory", unlimited(node.host))
            return node.kill()
        hog = node.host.exhaust(node.process.pid)
        wait_for("the system ends it", lambda: node.process.poll() is not None)
        hog.kill()
        hog.wait()

    def make(self):
        subprocess.run([sys.executable, tap.ROOT / "tools/make-random-model", self.model, *map(str, SHAPE)],
                       check=True, capture_output=True)
        self.mirror.files["/big.gguf"] = self.model.read_bytes()

    def close(self):
        for node in self.nodes:
            if REPORT.failed:
                print(f"# --- {node.name}\n# " + node.tail().replace("\n", "\n# "), flush=True)
            node.down()

    def too_few(self):
        """What is left cannot hold the model."""
        workers, owner = wait_for("it runs", lambda: running(self.nodes[0]), pause_s=0.2)
        last = self.by_name[owner]
        chat = Chat(last).begun()
        since = time.monotonic()
        for node in self.nodes:
            if node is not last:
                node.kill()
        chat.wait()
        check(re.search(r"\d [MG]iB", (chat.end or {}).get("error", "")) is not None,
              "one host that is left ends the answer with the numbers", (chat.end, chat.text))
        check(self.whole.text.startswith(chat.text), "after what was right so far", (chat.text, self.whole.text))
        print(f"# told after {time.monotonic() - since:.1f} s: {chat.end}", flush=True)

    def tell(self):
        self.make()
        self.join()
        self.fetch()
        self.place()
        self.compare()
        worker = lambda workers, owner: (workers[0], owner)
        elsewhere = lambda workers, owner: (workers[0], self.idle(workers, owner))
        kill = lambda node: node.kill()
        back = self.disturb("a worker is killed", elsewhere, kill)
        self.again(back)
        lost = self.disturb("the owner is killed", lambda workers, owner: (
            owner, self.idle(workers, owner) if self.idle(workers, owner) != owner else workers[0]), kill)
        workers, owner = wait_for("two go on", lambda: running(back), pause_s=0.2)
        check(back.name in (*workers, owner), "the worker that came back is used", (workers, owner, back.name))
        self.again(lost)
        hung = self.disturb("a worker hangs", worker, lambda node: node.pause())
        hung.pause(False)
        self.again(hung)
        cut = self.disturb("a worker is cut off", worker, lambda node: node.host.cut())
        cut.host.cut(up=True)
        self.again(cut)
        full = self.disturb("a worker's memory is exhausted", worker, self.out_of_memory)
        self.again(full)
        size = self.model.stat().st_size
        check(self.mirror.sent_bytes <= size * 1.02, "nothing more came from outside",
              (self.mirror.sent_bytes, size))
        self.too_few()


def main():
    why = clients.install()
    if sanitized() == "tsan":
        REPORT.skip("three hosts", "it takes minutes with the thread sanitizer, which watches the other suites here")
        return REPORT.end()
    all_hosts = hosts(3, 0 if sanitized() else HOST_BYTES)
    if all_hosts is None or why:
        REPORT.skip("three hosts", why or "network namespaces need root and iproute2")
        return REPORT.end()
    if unlimited(all_hosts[0]):
        REPORT.skip("memory limits of hosts", unlimited(all_hosts[0]))
    mirror = Mirror(f"{NETWORK}.254")
    with tempfile.TemporaryDirectory() as folder:
        story = Story(all_hosts, Path(folder, "big.gguf"), mirror)
        try:
            story.tell()
        except (tap.Failure, subprocess.SubprocessError, LookupError, ValueError) as failure:
            check(False, "the suite runs to its end", failure)
        finally:
            story.close()
            mirror.close()
            close_hosts(all_hosts)
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
