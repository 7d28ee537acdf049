"""./start ends with a server that has answered, also where its port is taken, and says how to end it."""
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
    """Runs ./start and `consort down`; the port of the server between them, or None."""
    done = subprocess.run(["./start"], cwd=tap.ROOT, env=environment, capture_output=True, text=True,
                          timeout=tap.TIMEOUT_S, check=False)
    report.check(done.returncode == 0 and "open-source C program" in done.stdout,
                 f"{name}: the demo model answers", f"{done.stdout}\n{done.stderr}")
    found = re.search(r"open http://127\.0\.0\.1:(\d+) in a browser", done.stderr)
    report.check(found is not None, f"{name}: the page's address is printed", done.stderr)
    if found is None:
        return None
    page = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=tap.TIMEOUT_S)
    page.request("GET", "/")
    kind = page.getresponse().getheader("Content-Type", "")
    report.check(kind.startswith("text/html"), f"{name}: the page is there", kind)
    page.close()
    down = subprocess.run(["build/consort", "down"], cwd=tap.ROOT, env=environment,
                          capture_output=True, text=True, timeout=tap.TIMEOUT_S, check=False)
    report.check(down.returncode == 0, f"{name}: consort down ends it", down.stderr)
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
