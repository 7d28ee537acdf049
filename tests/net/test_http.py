#!/usr/bin/env python3
"""The HTTP server, over real sockets against tests/support/http_echo.c. Prints TAP.

Nothing here depends on how fast anything is: what has to happen is waited for, for at most WAIT_S.

    tests/net/test_http.py [WORD...]     only the cases whose names contain one of the words
"""
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tap import CONSORT, Report  # noqa: E402

# The server lies beside the program under test, and is run the same way.
ECHO = [*CONSORT[:-1], str(pathlib.Path(CONSORT[-1]).parent / "tests/support/http_echo")]
WAIT_S = 120
# Where a server closes who is silent: no shorter than this machine may let a client wait for its turn.
LIMIT_MS = 1500
CASES = []


class Wrong(Exception):
    """What was seen is not what must be."""


def case(function):
    CASES.append(function)
    return function


def must(condition, *told):
    if not condition:
        raise Wrong(" ".join(repr(t) for t in told))


def same(found, expected):
    must(found == expected, "found", found, "expected", expected)


class Server:
    """A running http_echo; ends well or raises Wrong."""

    def __init__(self, *options, descriptors=0):
        def limit():
            if descriptors:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
        self.process = subprocess.Popen([*ECHO, *(str(o) for o in options)], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        preexec_fn=limit)
        line = self.process.stdout.readline()
        if not line:
            raise Wrong(self.process.communicate()[1].decode())
        self.port = int(line)

    def __enter__(self):
        return self

    def __exit__(self, kind, _value, _trace):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if kind is None else signal.SIGKILL)
        try:
            told = self.process.communicate(timeout=WAIT_S)[1].decode()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Wrong("the server did not end after SIGTERM") from None
        if kind is None:
            must(self.process.returncode == 0 and not told, self.process.returncode, told)

    def connect(self, **options):
        return Client(self.port, **options)

    def get(self, path):
        """The body of an answer on a connection of its own."""
        with self.connect() as client:
            return client.ask(path).body.decode()

    def state(self):
        return {k: int(v) for k, v in (word.split("=") for word in self.get("/state").split())}

    def wait_for(self, **wanted):
        """Waits until the state has these values."""
        until = time.monotonic() + WAIT_S
        while True:
            state = self.state()
            if all(state[k] == v for k, v in wanted.items()):
                return state
            must(time.monotonic() < until, "state stays", state, "instead of", wanted)
            time.sleep(0.01)


class Answer:
    def __init__(self, status, reason, fields, body):
        self.status, self.reason, self.fields, self.body = status, reason, fields, body


class Client:
    """A connection: bytes out, and answers in, read strictly."""

    def __init__(self, port, tls=None, buffer_bytes=0):
        self.socket = socket.socket()
        self.socket.settimeout(WAIT_S)
        if buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = tls.wrap_socket(self.socket)
        self.rest = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data.encode() if isinstance(data, str) else data)

    def reset(self):
        """Leaves with a reset instead of an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def more(self):
        data = self.socket.recv(65536)
        self.rest += data
        return bool(data)

    def line(self):
        while b"\r\n" not in self.rest:
            must(self.more(), "the answer ends within a line", self.rest)
        line, self.rest = self.rest.split(b"\r\n", 1)
        return line

    def exactly(self, size):
        pieces, left = [], size
        while left > 0:
            if not self.rest:
                must(self.more(), "the answer ends", left, "bytes early")
            piece, self.rest = self.rest[:left], self.rest[left:]
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def to_end(self):
        while self.more():
            pass
        data, self.rest = self.rest, b""
        return data

    def ended(self):
        """Whether the server closed without another byte."""
        try:
            return self.to_end() == b""
        except ConnectionResetError:
            return True

    def chunks(self):
        body = b""
        while True:
            size = int(self.line(), 16)
            body += self.exactly(size)
            same(self.line(), b"")
            if size == 0:
                return body

    def head(self):
        status_line = self.line().decode()
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) ([ -~]+)", status_line)
        must(match, status_line)
        fields = {}
        while True:
            line = self.line().decode()
            if not line:
                return Answer(int(match[1]), match[2], fields, b"")
            name, value = line.split(": ", 1)
            must(name.lower() not in fields, "twice:", name)
            fields[name.lower()] = value

    def answer(self, head_only=False):
        """The next answer, interim ones left out."""
        answer = self.head()
        while answer.status == 100:
            same(answer.fields, {})
            answer = self.head()
        fields = answer.fields
        if head_only or answer.status in (204, 304):
            return answer
        if fields.get("transfer-encoding") == "chunked":
            must("content-length" not in fields, fields)
            answer.body = self.chunks()
        elif "content-length" in fields:
            answer.body = self.exactly(int(fields["content-length"]))
        else:
            same(fields.get("connection"), "close")
            answer.body = self.to_end()
        return answer

    def ask(self, path, method="GET", body=b"", fields=()):
        lines = [f"{method} {path} HTTP/1.1", "Host: test", *fields]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return self.answer(method == "HEAD")


GET_HELLO = "GET /hello HTTP/1.1\r\nHost: test\r\n\r\n"
GET_HOLD = "GET /hold HTTP/1.1\r\nHost: test\r\n\r\n"
GET_HOLD_STREAM = "GET /hold-stream HTTP/1.1\r\nHost: test\r\n\r\n"


# ---- Requests and answers ------------------------------------------------------------------------


@case
def echo():
    with Server() as server, server.connect() as client:
        for body in (b"", b"some \x00 bytes"):
            answer = client.ask("/a%20b?q=c+d", "POST", body, ["X-Test:  value "])
            same((answer.status, answer.reason), (200, "OK"))
            host, port = client.socket.getsockname()
            expected = b"\n".join([b"POST", b"/a b", b"value", b"c d", body,
                                   f"plain {host}:{port}".encode()])
            same(answer.body, expected)
            same(answer.fields["x-extra"], "one  two")
            must(re.fullmatch(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} "
                              r"\d\d:\d\d:\d\d GMT", answer.fields["date"]), answer.fields["date"])
        same(client.ask("/x").body.split(b"\n")[2:4], [b"-", b"-"])


@case
def byte_by_byte():
    with Server() as server, server.connect() as client:
        text = ("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello"
                "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
                "2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: x\r\n\r\n" + GET_HELLO)
        for byte in text.encode():
            client.send(bytes([byte]))
        same(client.answer().body.split(b"\n")[4], b"hello")
        same(client.answer().body.split(b"\n")[4], b"hello")
        same(client.answer().body, b"hello")


@case
def pipelined():
    with Server() as server, server.connect() as client:
        asked = []
        for i in range(300):
            body = b"x" * (i * 7 % 50)
            asked.append(b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" %
                         (i, len(body), body))
        client.send(b"".join(asked))
        for i in range(300):
            words = client.answer().body.split(b"\n")
            same((words[1], len(words[4])), (b"/%d" % i, i * 7 % 50))


@case
def pipelined_behind_a_waiting_answer():
    with Server() as server, server.connect() as client:
        client.send(GET_HOLD)
        server.wait_for(held=1)
        body = b"x" * 4000
        asked = b"POST /n HTTP/1.1\r\nHost: h\r\nContent-Length: 4000\r\n\r\n" + body
        # More than the server reads ahead, so that a thread may have to wait for it.
        sender = threading.Thread(target=lambda: client.send(asked * 500))
        sender.start()
        time.sleep(0.05)
        before = server.state()["handled"]
        same(server.state()["handled"], before + 1)
        server.get("/release")
        same(client.answer().body, b"released")
        for _ in range(500):
            same(len(client.answer().body.split(b"\n")[4]), 4000)
        sender.join()


@case
def pipelined_without_reading():
    """Answers that are not read make requests wait, not memory grow."""
    with Server() as server, server.connect(buffer_bytes=4096) as client:
        asked = b"POST /n HTTP/1.1\r\nHost: h\r\nContent-Length: 30000\r\n\r\n" + b"x" * 30000
        sender = threading.Thread(target=lambda: client.send(asked * 1000))
        sender.start()
        time.sleep(0.3)
        must(server.state()["handled"] < 700, server.state())
        for _ in range(1000):
            same(len(client.answer().body.split(b"\n")[4]), 30000)
        sender.join()
        client.send(asked * 20)
        client.socket.shutdown(socket.SHUT_WR)
        for _ in range(20):
            same(len(client.answer().body.split(b"\n")[4]), 30000)
        must(client.ended())


@case
def large_bodies_both_ways():
    with Server() as server, server.connect() as client:
        body = random.Random(1).randbytes(20 << 20)
        client_body = client.ask("/echo", "POST", body).body
        must(body in client_body, len(client_body))
        chunks, at = [], 0
        sizes = random.Random(2)
        while at < 1 << 20:
            size = sizes.randrange(1, 9000)
            chunks.append(b"%x\r\n%s\r\n" % (len(body[at:at + size]), body[at:at + size]))
            at += size
        client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" +
                    b"".join(chunks) + b"0\r\n\r\n")
        must(body[:at] in client.answer().body)


@case
def head_and_empty_answers():
    with Server() as server, server.connect() as client:
        answer = client.ask("/hello", "HEAD")
        same((answer.status, answer.fields["content-length"]), (200, "5"))
        same(client.ask("/stream", "HEAD").fields["transfer-encoding"], "chunked")
        for status in (204, 304):
            answer = client.ask(f"/status?is={status}")
            must("content-length" not in answer.fields, answer.fields)
        same(client.ask("/status?is=200").fields["content-length"], "0")
        same(client.ask("/hello", "OPTIONS").body, b"hello")
        client.send("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n")
        same(client.answer().body.split(b"\n")[1], b"*")
        same(client.ask("/hello").body, b"hello")


@case
def streams():
    with Server() as server, server.connect() as client:
        client.send("GET /stream?n=2 HTTP/1.1\r\nHost: h\r\n\r\n")
        client.head()
        same(client.exactly(27), b"6\r\npiece\n\r\n6\r\npiece\n\r\n0\r\n\r\n")
        same(client.ask("/hello").body, b"hello")


@case
def stream_pieces_go_out_at_once():
    with Server() as server, server.connect() as client:
        client.send(GET_HOLD_STREAM)
        same(client.head().status, 200)
        same(client.exactly(11), b"6\r\nfirst \r\n")
        server.get("/release?streamed=1")
        same(client.chunks(), b"second")


@case
def old_clients():
    with Server() as server:
        with server.connect() as client:
            client.send("GET /hello HTTP/1.0\r\n\r\n")
            answer = client.answer()
            same((answer.body, answer.fields["connection"]), (b"hello", "close"))
            must(client.ended())
        with server.connect() as client:
            for _ in range(2):
                client.send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                answer = client.answer()
                same((answer.body, answer.fields["connection"]), (b"hello", "keep-alive"))
            client.send("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            answer = client.answer()
            must("transfer-encoding" not in answer.fields, answer.fields)
            same(answer.body, b"piece\n" * 3)


@case
def close_when_asked():
    with Server() as server, server.connect() as client:
        answer = client.ask("/hello", fields=["Connection: close"])
        same((answer.body, answer.fields["connection"]), (b"hello", "close"))
        must(client.ended())


@case
def continue_when_expected():
    with Server("--body-bytes", 1000) as server:
        with server.connect() as client:
            client.send("POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
                        "Content-Length: 4\r\n\r\n")
            same(client.line() + client.line(), b"HTTP/1.1 100 Continue")
            client.send("body")
            same(client.answer().body.split(b"\n")[4], b"body")
        with server.connect() as client:
            client.send("POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
                        "Content-Length: 1001\r\n\r\n")
            same(client.head().status, 413)


@case
def from_another_thread():
    with Server() as server:
        clients = [server.connect() for _ in range(50)]
        for client in clients:
            client.send("GET /thread HTTP/1.1\r\nHost: h\r\n\r\n" * 4)
        for client in clients:
            for _ in range(4):
                same(client.answer().body, b"later")
            client.socket.close()


@case
def abort():
    with Server() as server, server.connect() as client:
        client.send("GET /abort HTTP/1.1\r\nHost: h\r\n\r\n" + GET_HELLO)
        must(client.ended())
        server.wait_for(connections=1)


# ---- Broken requests -----------------------------------------------------------------------------


def refused(server, data, status):
    """Sends data, expects the refusal, and that the handler saw nothing."""
    before = server.state()["handled"]
    with server.connect() as client:
        client.send(data)
        answer = client.answer()
        same(answer.status, status)
        same(answer.fields["connection"], "close")
        error = json.loads(answer.body)["error"]
        same(sorted(error), ["message"])
        must(client.ended())
    same(server.state()["handled"], before + 1)
    return error["message"]


@case
def broken_requests():
    with Server() as server:
        for data, status in (
                ("GET /\r\n\r\n", 400), ("GET / HTTP/1.1\r\n\r\n", 400), ("\x00", 400),
                ("GET / HTTP/1.1\nHost: h\n\n", 400), ("GET / HTTP/3.0\r\n\r\n", 505),
                ("POST / HTTP/1.0\r\n\r\n", 411), ("CONNECT h:1 HTTP/1.1\r\n\r\n", 501),
                ("GET / HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n", 417),
                ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n"
                 "\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
                ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
                ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400)):
            refused(server, data, status)
        must("https" in refused(server, b"\x16\x03\x01\x02\x00\x01", 400))


@case
def too_large():
    with Server("--body-bytes", 100000) as server:
        refused(server, "GET /" + "x" * 20000, 414)
        refused(server, "GET / HTTP/1.1\r\nHost: h\r\nA: " + "x" * 70000, 431)
        refused(server, "GET / HTTP/1.1\r\n" + "A: b\r\n" * 200, 431)
        refused(server, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100001\r\n\r\n", 413)
        # Who goes on sending still gets the answer.
        refused(server, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n" +
                b"x" * 500000, 413)
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        refused(server, b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" +
                chunk * 8, 413)


@case
def all_bodies_together():
    with Server("--all-body-bytes", 100000) as server, server.connect() as client:
        client.send(b"POST /hold HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60000)
        server.wait_for(held=1)
        refused(server, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60000,
                503)
        server.get("/release")
        same(client.answer().body, b"released")
        same(client.ask("/", "POST", b"x" * 60000).status, 200)


@case
def random_bytes():
    """Whatever comes, the server answers or closes, and lives."""
    rng = random.Random(3)
    seeds = [GET_HELLO.encode(), b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
             b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
    with Server() as server:
        for _ in range(300):
            data = bytearray(rng.choice(seeds) + rng.choice(seeds))
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            with server.connect() as client:
                client.send(bytes(data))
                client.socket.shutdown(socket.SHUT_WR)
                try:
                    client.to_end()
                except ConnectionResetError:
                    pass
        server.wait_for(connections=1)


# ---- Clients that leave --------------------------------------------------------------------------


@case
def leaves_before_the_answer():
    with Server() as server:
        gone = 0
        for request in (GET_HOLD, GET_HOLD_STREAM):
            for leave in (lambda c: c.socket.close(), Client.reset):
                client = server.connect()
                client.send(request)
                server.wait_for(held=1)
                leave(client)
                gone += 1
                server.wait_for(gone=gone, held=0, connections=1)
        client = server.connect()
        client.send("GET /hold HTTP/1.0\r\n\r\n")
        server.wait_for(held=1)
        client.socket.shutdown(socket.SHUT_WR)
        server.wait_for(gone=gone + 1, held=0)
        client.socket.close()


@case
def leaves_within_a_request():
    with Server() as server:
        for text in ("", "GET / HT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf"):
            for leave in (lambda c: c.socket.close(), Client.reset):
                client = server.connect()
                client.send(text)
                leave(client)
        server.wait_for(connections=1, gone=0)


@case
def leaves_with_requests_waiting():
    with Server() as server:
        client = server.connect()
        client.send(GET_HOLD + GET_HELLO * 3)
        server.wait_for(held=1)
        client.socket.close()
        server.wait_for(gone=1, held=0, connections=1)


@case
def half_closed_clients_get_their_answers():
    with Server() as server:
        with server.connect() as client:
            client.send(GET_HELLO * 2)
            client.socket.shutdown(socket.SHUT_WR)
            same((client.answer().body, client.answer().body), (b"hello", b"hello"))
            must(client.ended())
        with server.connect(buffer_bytes=4096) as client:
            client.send("GET /flood?bytes=12000000 HTTP/1.1\r\nHost: h\r\n\r\n" * 2)
            client.socket.shutdown(socket.SHUT_WR)
            same((len(client.answer().body), len(client.answer().body)), (12000000, 12000000))
            must(client.ended())
        with server.connect() as client:
            client.send(GET_HOLD + GET_HELLO)
            client.socket.shutdown(socket.SHUT_WR)
            same(client.line() + client.line(), b"HTTP/1.1 100 Continue")
            time.sleep(0.3)  # several signs of life are asked for meanwhile
            server.get("/release")
            same((client.answer().body, client.answer().body), (b"released", b"hello"))
            must(client.ended())
        with server.connect() as client:
            client.send(GET_HOLD_STREAM)
            client.socket.shutdown(socket.SHUT_WR)
            same(client.head().status, 200)
            same(client.exactly(12), b"6\r\nfirst \r\n0")
            server.get("/release?streamed=1")
            same(client.chunks(), b"second")
            must(client.ended())
        server.wait_for(gone=0, connections=1)


@case
def half_closed_and_then_gone():
    with Server() as server:
        client = server.connect()
        client.send(GET_HOLD)
        client.socket.shutdown(socket.SHUT_WR)
        same(client.line() + client.line(), b"HTTP/1.1 100 Continue")
        server.wait_for(held=1)
        client.reset()
        server.wait_for(gone=1, held=0, connections=1)


# ---- Slow clients --------------------------------------------------------------------------------


@case
def slow_readers():
    size = 48 << 20
    with Server("--pending-bytes", 1 << 20) as server:
        with server.connect(buffer_bytes=4096) as client:
            client.send(f"GET /big?bytes={size} HTTP/1.1\r\nHost: h\r\n\r\n")
            time.sleep(0.1)
            same(len(client.answer().body), size)
        must(server.state()["high"] < 1 << 18, server.state())
        # A handler that does not look how much is pending loses the client, not the memory.
        with server.connect(buffer_bytes=4096) as client:
            client.send(f"GET /flood?bytes={size} HTTP/1.1\r\nHost: h\r\n\r\n")
            server.wait_for(connections=1)
        must(server.state()["high"] < 3 << 20, server.state())


@case
def silent_clients():
    with Server("--request-ms", LIMIT_MS, "--idle-ms", LIMIT_MS, "--write-ms", LIMIT_MS) as server:
        for text in ("GET / HTTP/1.1\r\nHost", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n"):
            with server.connect() as client:
                client.send(text)
                same(client.answer().status, 408)
                must(client.ended())
        for text in ("", GET_HELLO):
            with server.connect() as client:
                client.send(text)
                if text:
                    same(client.answer().body, b"hello")
                must(client.ended())
        with server.connect(buffer_bytes=4096) as client:
            client.send(f"GET /big?bytes={48 << 20} HTTP/1.1\r\nHost: h\r\n\r\n")
            server.wait_for(gone=1)
        with server.connect() as client:  # waiting for an answer has no limit
            client.send(GET_HOLD)
            time.sleep(1.5 * LIMIT_MS / 1000)
            server.get("/release")
            same(client.answer().body, b"released")


# ---- Many clients --------------------------------------------------------------------------------


def raise_descriptors(wanted):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


@case
def ten_thousand_at_once():
    count = min(10000, raise_descriptors(10200) - 64)  # fewer where the system gives no more
    with Server() as server:
        clients = [server.connect() for _ in range(count)]
        for client in clients:
            client.send(GET_HELLO)
        for client in clients:
            same(client.answer().body, b"hello")
        same(server.state()["connections"], count + 1)
        for client in clients:
            client.socket.close()
        server.wait_for(connections=1)


@case
def one_too_many():
    with Server("--connections", 10) as server:
        clients = [server.connect() for _ in range(10)]
        for client in clients:
            same(client.ask("/hello").body, b"hello")
        clients[0].ask("/hello")  # now the second is the longest idle one
        time.sleep(1.2)           # who was idle for less than a second is not closed
        with server.connect() as client:
            same(client.ask("/hello").body, b"hello")
            must(clients[1].ended())
            same(clients[0].ask("/hello").body, b"hello")
        for client in clients:
            client.socket.close()


@case
def no_descriptors_left():
    with Server(descriptors=40) as server:
        clients = [server.connect() for _ in range(80)]
        for client in clients:
            client.send(GET_HOLD)
        # Those that were accepted are held; the others wait until these have left.
        time.sleep(0.3)
        for client in clients[:60]:
            client.socket.close()
        for client in clients[60:]:
            client.socket.close()
        server.wait_for(connections=1, held=0)
        same(server.get("/hello"), "hello")


# ---- The end -------------------------------------------------------------------------------------


@case
def draining():
    with Server() as server:
        waiting, idle, late = server.connect(), server.connect(), server.connect()
        same(idle.ask("/hello").body, b"hello")
        waiting.send(GET_HOLD)
        server.wait_for(held=1)
        late.send("GET /release HTTP/1.1\r\n")
        server.wait_for(connections=4)
        server.state()  # what came before this was asked has been read by now
        server.process.send_signal(signal.SIGTERM)
        must(idle.ended())
        late.send("Host: h\r\n\r\n")
        answers = late.answer(), waiting.answer()
        same([a.body for a in answers], [b"done", b"released"])
        same([a.fields["connection"] for a in answers], ["close", "close"])
        for client in (waiting, idle, late):
            must(client is idle or client.ended())
            client.socket.close()
        same(server.process.wait(WAIT_S), 0)


@case
def draining_with_answers_not_read():
    size = 12 << 20
    with Server() as server, server.connect(buffer_bytes=4096) as client:
        client.send(f"GET /flood?bytes={size} HTTP/1.1\r\nHost: h\r\n\r\n")
        until = time.monotonic() + WAIT_S
        while server.state()["high"] == 0:
            must(time.monotonic() < until)
        server.process.send_signal(signal.SIGTERM)
        same(len(client.answer().body), size)
        must(client.ended())
        client.socket.close()
        same(server.process.wait(WAIT_S), 0)


@case
def closing_with_answers_under_way():
    with Server() as server:
        clients = [server.connect() for _ in range(4)]
        for client in clients:
            client.send(GET_HOLD)
        server.wait_for(held=4)
        server.process.send_signal(signal.SIGINT)
        same(server.process.wait(WAIT_S), 0)
        for client in clients:
            must(client.ended())
            client.socket.close()


# ---- TLS -----------------------------------------------------------------------------------------


class Certificate:
    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path, self.key = f"{self.folder.name}/c.pem", f"{self.folder.name}/k.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                        "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
                        "/CN=localhost", "-keyout", self.key, "-out", self.path],
                       check=True, capture_output=True)
        self.context = ssl.create_default_context(cafile=self.path)
        self.context.check_hostname = False
        return self

    def __exit__(self, *_):
        self.folder.cleanup()


class SecureServer(Server):
    def __init__(self, certificate, *options):
        super().__init__("--tls", certificate.path, certificate.key, *options)
        self.certificate = certificate

    def connect(self, **options):
        return Client(self.port, tls=self.certificate.context, **options)


@case
def tls():
    with Certificate() as certificate, SecureServer(certificate) as server:
        certificate.context.set_alpn_protocols(["h2", "http/1.1"])
        with server.connect() as client:
            same(client.socket.selected_alpn_protocol(), "http/1.1")
            same(client.socket.version(), "TLSv1.3")
            for i in range(3):
                words = client.ask(f"/{i}", "POST", b"body").body.split(b"\n")
                same((words[1], words[4], words[5][:4]), (b"/%d" % i, b"body", b"tls "))
            for byte in (GET_HELLO * 2).encode():
                client.send(bytes([byte]))
            same((client.answer().body, client.answer().body), (b"hello", b"hello"))
            body = random.Random(4).randbytes(5 << 20)
            must(body in client.ask("/echo", "POST", body).body)
            same(len(client.ask(f"/big?bytes={20 << 20}").body), 20 << 20)
            answer = client.ask("/hello", fields=["Connection: close"])
            same(answer.body, b"hello")
            must(client.ended())
        certificate.context.maximum_version = ssl.TLSVersion.TLSv1_2
        with server.connect() as client:
            same((client.ask("/hello").body, client.socket.version()), (b"hello", "TLSv1.2"))


@case
def tls_clients_that_leave():
    with Certificate() as certificate, SecureServer(certificate) as server:
        for gone, leave in enumerate((lambda c: c.socket.close(), Client.reset,
                                      lambda c: c.socket.unwrap()), 1):
            client = server.connect()
            client.send(GET_HOLD)
            server.wait_for(held=1)
            try:
                leave(client)
            except (OSError, ssl.SSLError):  # the answer to unwrap is the end of the connection
                pass
            server.wait_for(gone=gone, held=0, connections=1)
            client.socket.close()


@case
def tls_on_the_wrong_port():
    with Certificate() as certificate:
        with SecureServer(certificate) as server:
            with Client(server.port) as client:
                client.send(GET_HELLO)
                answer = client.answer()
                same(answer.status, 400)
                must("https" in answer.body.decode(), answer.body)
            for data in (b"\x16\x03\x01\x00", b"garbage\r\n\r\n", b""):
                with Client(server.port) as client:
                    client.send(data)
            server.wait_for(connections=1)
        with Server() as server:
            try:
                Client(server.port, tls=certificate.context)
                raise Wrong("plain HTTP was taken for TLS")
            except ssl.SSLError:
                pass


@case
def tls_silent_clients():
    with Certificate() as certificate, SecureServer(certificate, "--request-ms", LIMIT_MS) as server:
        with Client(server.port) as client:
            must(client.ended())
        same(server.get("/hello"), "hello")


def main():
    report = Report()
    words = sys.argv[1:]
    if not os.access(ECHO[-1], os.X_OK):
        report.skip("http", f"{ECHO[-1]} is not built (make unit-tests)")
        return report.end()
    for function in CASES:
        name = function.__name__.replace("_", " ")
        if words and not any(word in name for word in words):
            continue
        if name.startswith("tls") and shutil.which("openssl") is None:
            report.skip(name, "openssl is not here")
            continue
        try:
            function()
            report.check(True, name)
        except (Wrong, OSError, ValueError) as fault:
            report.check(False, name, f"{type(fault).__name__}: {fault}"[:2000])
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
