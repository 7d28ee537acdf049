"""Test lines in the Test Anything Protocol, and the program under test."""
import atexit
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("CONSORT_REFERENCE", ROOT / "../shared/reference"))
# May be several words, such as "qemu-aarch64-static build/aarch64-linux-gnu/consort".
CONSORT = shlex.split(os.environ.get("CONSORT", str(ROOT / "build/consort")))
TIMEOUT_S = 600

# Tests leave the user's own keys and records alone.
HOME = tempfile.mkdtemp(prefix="consort-home-")
os.environ["CONSORT_HOME"] = HOME
atexit.register(shutil.rmtree, HOME, ignore_errors=True)


class Report:
    def __init__(self):
        self.count, self.failed = 0, 0

    def check(self, ok, name, detail=""):
        self.count += 1
        self.failed += not ok
        print(f"{'ok' if ok else 'not ok'} {self.count} - {name}", flush=True)
        if detail and not ok:
            for line in str(detail).splitlines():
                print("# " + line, flush=True)

    def skip(self, name, why):
        self.count += 1
        print(f"ok {self.count} - {name} # SKIP {why}", flush=True)

    def end(self):
        print(f"1..{self.count}", flush=True)
        return 1 if self.failed else 0


class Failure(Exception):
    """The program ended badly; the text is its last words. code is its exit code, below zero for a
    signal, and None where it did not end by itself."""

    def __init__(self, text, code=None):
        super().__init__(text)
        self.code = code


def consort(*arguments, stdin=b""):
    """Runs the program and returns what it printed, as bytes."""
    words = CONSORT + [str(a) for a in arguments]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Failure(str(problem)) from problem
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-5:]
        text = "\n".join([f"exit code {done.returncode}: {' '.join(words)}"] + said)
        raise Failure(text, done.returncode)
    return done.stdout
