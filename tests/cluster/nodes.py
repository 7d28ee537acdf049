"""Nodes of a cluster for the suites of this folder: processes on loopback, or hosts of their own.

A host is a network namespace joined to a bridge by a pair of virtual interfaces, with a memory control
group where the system has them; both need root. Each node has a home of its own."""
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tap  # noqa: E402

DEMO = tap.ROOT / "models/demo.gguf"
# Names and addresses of this run alone, so that several may go on at a time.
RUN = os.getpid()
BRIDGE = f"cb{RUN}"
NETWORK = f"10.{64 + RUN // 256 % 128}.{RUN % 256}"
# Where memory control groups are, by version, and the file of a group's limit.
MEMORY_GROUPS = (("1", Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
                 ("2", Path("/sys/fs/cgroup"), "memory.max"))


def wait_for(what, condition, timeout_s=120, pause_s=0.05):
    """The first true value of condition(); a failure with the last one when time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise tap.Failure(f"waited in vain for: {what}; last: {value!r}", 1)
        time.sleep(pause_s)


def sanitized():
    """The sanitizer that the program was built with, whose memory no limit of ours allows for."""
    program = Path(shutil.which(tap.CONSORT[-1]) or tap.CONSORT[-1]).read_bytes()
    return next((name for name in ("tsan", "asan") if f"__{name}_init".encode() in program), None)


class MemoryGroup:
    """A memory control group; `why` says why there is none."""

    def __init__(self, name, limit_bytes):
        self.folder, self.why = None, "this system has no memory control groups"
        for version, top, limit in MEMORY_GROUPS:
            if version == "2" and not (top / "cgroup.controllers").exists() or not top.is_dir():
                continue
            try:
                if version == "2":
                    (top / "cgroup.subtree_control").write_text("+memory")
                (top / name).mkdir()
                self.folder = top / name
                (self.folder / limit).write_text(str(limit_bytes))
                self.why = None
                return
            except OSError as fault:
                self.why = f"no memory control group can be made: {fault}"
                self.remove()

    def enter(self):
        """Puts this process there."""
        if self.folder is not None:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self):
        try:
            if self.folder is not None:
                self.folder.rmdir()
        except OSError:
            pass
        self.folder = None


class Host:
    """Where a node runs: this machine itself (number 0), or a namespace."""

    def __init__(self, number=0, memory_bytes=0):
        self.number = number
        self.prefix, self.address = [], "127.0.0.1"
        self.group = MemoryGroup(f"consort{RUN}-{number}", memory_bytes) if memory_bytes else None
        self.listen = "127.0.0.1:0"
        if number == 0:
            return
        self.name = f"consort{RUN}-{number}"
        self.address = f"{NETWORK}.{number}"
        # Not "ip netns exec", under which control groups are not to be seen.
        self.prefix = ["nsenter", f"--net=/run/netns/{self.name}"]
        self.device = f"cv{RUN}n{number}"
        self.listen = f"{self.address}:0"
        commands = [
            ["ip", "netns", "add", self.name],
            ["ip", "link", "add", self.device, "type", "veth", "peer", "name", "eth0", "netns", self.name],
            ["ip", "link", "set", self.device, "master", BRIDGE, "up"],
            [*self.prefix, "ip", "address", "add", f"{self.address}/24", "dev", "eth0"],
            [*self.prefix, "ip", "link", "set", "eth0", "up"],
            [*self.prefix, "ip", "link", "set", "lo", "up"],
            [*self.prefix, "ip", "route", "add", "224.0.0.0/4", "dev", "eth0"],
        ]
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)

    def cut(self, up=False):
        """Takes the host's network away, or gives it back."""
        subprocess.run(["ip", "link", "set", self.device, "up" if up else "down"], check=True)

    def add_interface(self, name, bridge, network):
        """One more interface, in the network of that bridge; the node listens on all from now on."""
        device = f"cw{RUN}n{self.number}"
        self.listen = ":0"
        for command in (["ip", "link", "add", device, "type", "veth", "peer", "name", name, "netns", self.name],
                        ["ip", "link", "set", device, "master", bridge, "up"],
                        [*self.prefix, "ip", "address", "add", f"{network}.{self.number}/24", "dev", name],
                        [*self.prefix, "ip", "link", "set", name, "up"]):
            subprocess.run(command, check=True, capture_output=True)

    def shape(self, name, rate):
        """Bounds what the interface sends; False where the system cannot."""
        return subprocess.run([*self.prefix, "tc", "qdisc", "add", "dev", name, "root", "tbf", "rate", rate,
                               "burst", "64kb", "latency", "50ms"], capture_output=True).returncode == 0

    def set_link(self, name, up):
        subprocess.run([*self.prefix, "ip", "link", "set", name, "up" if up else "down"], check=True)

    def sent(self, name):
        """Bytes that left by the interface so far."""
        told = subprocess.run([*self.prefix, "ip", "-s", "-j", "link", "show", name], check=True,
                              capture_output=True, text=True).stdout
        return json.loads(told)[0]["stats64"]["tx"]["bytes"]

    def enter(self):
        """To be run in a new process of this host."""
        if self.group is not None:
            self.group.enter()

    def exhaust(self, pid):
        """Takes memory of the host's group until the system ends process pid of it."""
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")  # before the one that takes it
        hog = "held = []\nwhile True: held.append(bytearray(b'1') * (1 << 20))"
        return subprocess.Popen([sys.executable, "-c", hog], preexec_fn=self.enter, stderr=subprocess.DEVNULL)

    def close(self):
        if self.number == 0:
            return
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True)
        if self.group is not None:
            self.group.remove()


def hosts(count, memory_bytes=0):
    """Hosts on one bridge; None where this machine cannot have them."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
        return None
    for command in (["ip", "link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0"],
                    ["ip", "address", "add", f"{NETWORK}.254/24", "dev", BRIDGE],
                    ["ip", "link", "set", BRIDGE, "up"]):
        if subprocess.run(command, capture_output=True).returncode != 0:
            return None
    return [Host(number, memory_bytes) for number in range(1, count + 1)]


def close_hosts(all_hosts):
    for host in all_hosts:
        host.close()
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True)


class Node:
    """A machine of the cluster: its home, its commands and, between up and down, its server."""

    def __init__(self, name, host=None):
        self.name, self.host = name, host or Host()
        self.home = tempfile.TemporaryDirectory(prefix=f"consort-{name}-")
        self.environment = {**os.environ, "CONSORT_HOME": self.home.name}
        self.process, self.log, self.port, self.cluster_port = None, "", None, None

    def command(self, *words, check=True):
        """Standard output of a command that is typed on this node; a failure where it fails."""
        done = subprocess.run([*self.host.prefix, *tap.CONSORT, *map(str, words)], env=self.environment,
                              capture_output=True, text=True, timeout=tap.TIMEOUT_S,
                              preexec_fn=self.host.enter)
        if check and done.returncode != 0:
            raise tap.Failure(f"{self.name}: {' '.join(map(str, words))}: {done.stderr}\n{self.tail()}",
                              done.returncode)
        return done.stdout if check else (done.returncode, done.stdout, done.stderr)

    def up(self, *arguments, models=()):
        words = [*self.host.prefix, *tap.CONSORT, "up", *models, "--listen", "127.0.0.1:0",
                 "--node-name", self.name, "--cluster-listen", self.host.listen, *map(str, arguments)]
        if self.host.number:
            words += ["--listen", f"{self.host.address}:4000", "--open"]
        self.log_file = open(Path(self.home.name, "log"), "wb+", buffering=0)
        self.process = subprocess.Popen(words, stderr=self.log_file, stdout=subprocess.DEVNULL,
                                        env=self.environment, preexec_fn=self.host.enter)
        found = wait_for(f"{self.name} is ready", lambda: self.process.poll() is not None or
                         re.search(r"ready on http://127\.0\.0\.1:(\d+)/v1", self.read_log()))
        if found is True:
            raise tap.Failure(f"{self.name} did not start:\n{self.read_log()}", self.process.returncode)
        self.port = int(found.group(1))
        return self

    def read_log(self):
        self.log = Path(self.home.name, "log").read_text(encoding="utf-8", errors="replace")
        return self.log

    def tail(self):
        path = Path(self.home.name, "log")
        return path.read_text(encoding="utf-8", errors="replace")[-4000:] if path.exists() else ""

    def cluster_address(self):
        """Where other nodes reach this one."""
        presence = max(Path(self.home.name, "run").glob("*.json"), key=lambda path: path.stat().st_mtime)
        return f"{self.host.address}:{json.loads(presence.read_text())['cluster_port']}"

    def status(self):
        return json.loads(self.command("status", "--json"))

    def names(self):
        """Of the nodes that are up, as this one sees them."""
        return {node["name"] for node in self.status()["nodes"] if node["state"] == "up"}

    def instances(self):
        return self.status()["instances"]

    def connect(self):
        if self.host.number == 0:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=tap.TIMEOUT_S)
        return http.client.HTTPConnection(self.host.address, 4000, timeout=tap.TIMEOUT_S)

    def json(self, method, path, body=None, key=None):
        connection = self.connect()
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, json.loads(data)

    def chat(self, question, model="demo", **fields):
        status, body = self.json("POST", "/v1/chat/completions", {
            "model": model, "temperature": 0, "messages": [{"role": "user", "content": question}], **fields})
        if status != 200:
            raise tap.Failure(f"{self.name}: {status} {body}\n{self.tail()}", 1)
        return body["choices"][0]["message"]["content"]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def pause(self, stop=True):
        self.process.send_signal(signal.SIGSTOP if stop else signal.SIGCONT)

    def down(self):
        """Ends the server; its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=tap.TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return -9
