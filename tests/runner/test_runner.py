#!/usr/bin/env python3
"""The runner itself: no way for a suite to end badly may count as passed."""
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tap import ROOT, Report

# What a suite does (a shell script), and the passed, failed and skipped it must count as.
CASES = {
    "passes": ("echo 1..2; echo ok 1 - a; echo ok 2 - b", (2, 0, 0)),
    "fails": ("echo 1..2; echo ok 1 - a; echo not ok 2 - b; exit 1", (1, 1, 0)),
    "skips": ("echo 1..2; echo 'ok 1 - a # SKIP no data'; echo 'ok 2 # SKIP b'", (0, 0, 2)),
    "skips all": ("echo '1..0 # SKIP no data'", (0, 0, 1)),
    "two groups": ("echo 1..1; echo ok 1 - a; echo 1..1; echo ok 1 - b", (2, 0, 0)),
    "plan at the end": ("echo ok 1 - a; echo 1..1", (1, 0, 0)),
    "no plan": ("echo ok 1 - a", (1, 1, 0)),
    "no output": ("true", (0, 1, 0)),
    "stops early": ("echo 1..3; echo ok 1 - a", (1, 1, 0)),
    "crashes": ("echo 1..1; echo ok 1 - a; kill -SEGV $$", (1, 1, 0)),
    "silent failure": ("echo 1..1; echo ok 1 - a; exit 3", (1, 1, 0)),
    "hangs": ("echo 1..1; echo ok 1 - a; sleep 600", (1, 1, 0)),
    "cannot start": (None, (0, 1, 0)),
}


def load_runner():
    loader = importlib.machinery.SourceFileLoader("run_suites", str(ROOT / "tests/run-suites"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("run_suites", loader))
    sys.modules["run_suites"] = module
    loader.exec_module(module)
    return module


def main():
    sys.dont_write_bytecode = True
    runner = load_runner()
    report = Report()
    for name, (script, expected) in CASES.items():
        command = ["sh", "-c", script] if script is not None else ["./no-such-suite"]
        limit_s = 2 if name == "hangs" else 600
        outcome = runner.run(runner.Suite(name, command, timeout_s=limit_s))
        found = (outcome.passed, len(outcome.failures), len(outcome.skips))
        report.check(found == expected, f"a suite that {name}", f"{found}, expected {expected}")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
