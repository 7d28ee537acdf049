#!/usr/bin/env python3
"""What web/ holds: its types, its unit tests, and that web/dist/index.html is what it builds."""
import os
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import packages  # noqa: E402
import tap  # noqa: E402

PAGE = packages.WEB / "dist/index.html"


def check_files(report):
    lock = (packages.WEB / "package-lock.json").read_text(encoding="utf-8")
    report.check('"resolved"' not in lock, "package-lock.json names no registry")
    page = PAGE.read_text(encoding="utf-8")
    report.check(len(page.encode()) < 176 * 1024, "the page is small", f"{len(page.encode())} bytes")
    report.check(page.count("<script") == page.count("<script>") + page.count("\\x3Cscript"),
                 "the page has no script but its own")
    report.check(re.search(r'(?:src|href)="(?!data:|#)', page.split("<style>")[0]) is None,
                 "the head of the page names nothing to fetch")
    report.check("url(" not in page.split("<style>")[1].split("</style>")[0],
                 "the style names nothing to fetch")


def check_build(report):
    with tempfile.TemporaryDirectory() as folder:
        done = packages.npm("run", "build",
                            env={**os.environ, "CONSORT_PAGE_FOLDER": folder, "NODE_ENV": "production"})
        built = Path(folder) / "index.html"
        fresh = built.read_bytes() if built.exists() else None
    report.check(fresh == PAGE.read_bytes(), "web/dist/index.html is what web/ builds: make page",
                 done.stdout + done.stderr if fresh is None else "")


def main():
    why = packages.missing()
    if why:
        print(f"1..0 # SKIP {why}")
        return 0
    report = tap.Report()
    check_files(report)
    done = packages.npm("run", "types")
    report.check(done.returncode == 0, "the types are right", done.stdout)
    done = packages.npm("test")
    report.check(done.returncode == 0, "the unit tests pass", done.stdout + done.stderr)
    check_build(report)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
