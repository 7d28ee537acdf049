"""A running `consort up`, for the suites of this folder."""
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "oracle"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tap  # noqa: E402

DEMO = tap.ROOT / "models/demo.gguf"
# The user's own store does not belong in tests.
HOME = tempfile.TemporaryDirectory(prefix="consort-home-")
os.environ["CONSORT_HOME"] = HOME.name


def made_up(name, folder):
    """A small random model, by the name of its case in tests/oracle/make_models.py."""
    import make_models  # needs numpy, which not every suite does
    (case,) = [c for c in make_models.CASES if c.name == name]
    return make_models.make(case, folder)[0]


class Server:
    """Starts the server on a free port; the log is kept in self.log as it comes, so that a server never
    waits for who reads it."""

    def __init__(self, *arguments, models=(f"demo={DEMO}",), environment=None):
        words = tap.CONSORT + ["up", *models, "--listen", "127.0.0.1:0", *map(str, arguments)]
        self.home = tempfile.TemporaryDirectory()
        self.environment = {**os.environ, "CONSORT_HOME": self.home.name, **(environment or {})}
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                        env=self.environment)
        self.log, self.ended = "", False
        self.news = threading.Condition()
        self.reader = threading.Thread(target=self.read_log, daemon=True)
        self.reader.start()
        ready = self.wait_log(r"ready on (https?)://[^:]*:(\d+)/v1\b")
        if not ready:
            if not self.ended:
                self.process.kill()
            raise tap.Failure(f"the server did not start:\n{self.log}", self.process.wait())
        self.scheme, self.port = ready.group(1), int(ready.group(2))

    def read_log(self):
        """Keeps what the server logs, to its end."""
        data = b"first"
        while data:
            data = self.process.stderr.read1(65536)
            with self.news:
                self.log += data.decode("utf-8", "replace")
                self.ended = not data
                self.news.notify_all()

    def wait_log(self, pattern):
        """The match of pattern in the log; None where the server ends or the time is up before."""
        with self.news:
            self.news.wait_for(lambda: self.ended or re.search(pattern, self.log), tap.TIMEOUT_S)
            return re.search(pattern, self.log)

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=tap.TIMEOUT_S)

    def request(self, method, path, body=None, headers=None):
        """(status, headers, bytes)"""
        connection = self.connect()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        result = response.status, response.headers, response.read()
        connection.close()
        return result

    def json(self, method, path, body=None, headers=None):
        status, _, data = self.request(method, path, body, headers)
        return status, json.loads(data)

    def events(self, path, body):
        """The data of each server-sent event, in order, as text."""
        status, headers, data = self.request("POST", path, {**body, "stream": True})
        assert status == 200 and headers["Content-Type"] == "text/event-stream", (status, data)
        parts = data.decode("utf-8").split("\n\n")
        assert parts[-1] == "", parts[-1]
        return [part[len("data: "):] for part in parts[:-1] if not part.startswith(":")]

    def command(self, *words):
        """(exit code, standard output, standard error) of a command of this server's owner."""
        done = subprocess.run(tap.CONSORT + list(map(str, words)), env=self.environment,
                              capture_output=True, text=True, timeout=tap.TIMEOUT_S)
        return done.returncode, done.stdout, done.stderr

    def stop(self, with_signal=signal.SIGTERM):
        """Ends the server; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        self.reader.join(tap.TIMEOUT_S)
        return self.process.wait(timeout=tap.TIMEOUT_S)
