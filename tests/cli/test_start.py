"""./start ends with two nodes that have answered, also where a port is taken, and says how to end them."""
import http.client
import http.server
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tap  # noqa: E402

ADDRESS = ("127.0.0.1", 4000)


class Taken(http.server.BaseHTTPRequestHandler):
    """Some other program on the port."""

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


def start(report, name, environment):
    """Runs ./start and ./start down; the port of the first node between them, or None."""
    done = subprocess.run(["./start"], cwd=tap.ROOT, env=environment, capture_output=True, text=True,
                          timeout=tap.TIMEOUT_S, check=False)
    answers = [line for line in done.stdout.splitlines() if line.strip()]
    half = len(answers) // 2
    report.check(done.returncode == 0 and "open-source C program" in done.stdout and
                 answers[:half] == answers[half:], f"{name}: both nodes give the demo model's answer",
                 f"{done.stdout}\n{done.stderr}")
    report.check("first" in done.stderr and "second" in done.stderr and "running" in done.stderr,
                 f"{name}: the cluster is shown", done.stderr)
    found = re.search(r"open http://127\.0\.0\.1:(\d+) in a browser", done.stderr)
    report.check(found is not None, f"{name}: the page's address is printed", done.stderr)
    if found is None:
        return None
    page = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=tap.TIMEOUT_S)
    page.request("GET", "/")
    kind = page.getresponse().getheader("Content-Type", "")
    report.check(kind.startswith("text/html"), f"{name}: the page is there", kind)
    page.close()
    down = subprocess.run(["./start", "down"], cwd=tap.ROOT, env=environment, capture_output=True,
                          text=True, timeout=tap.TIMEOUT_S, check=False)
    try:
        page.connect()
        still = True
    except OSError:
        still = False
    report.check(down.returncode == 0 and not still, f"{name}: ./start down ends them", down.stderr)
    return int(found[1])


def main():
    report = tap.Report()
    with tempfile.TemporaryDirectory(prefix="consort-home-") as home:
        environment = {**os.environ, "CONSORT_HOME": home}
        start(report, "start", environment)
        http.server.ThreadingHTTPServer.allow_reuse_address = True
        try:
            other = http.server.ThreadingHTTPServer(ADDRESS, Taken)
        except OSError:  # taken already, so that the first part has seen it
            return report.end()
        threading.Thread(target=other.serve_forever, daemon=True).start()
        port = start(report, "port taken", environment)
        report.check(port not in (None, ADDRESS[1]), "port taken: another one is used", port)
        other.shutdown()
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
