#!/usr/bin/env python3
"""The page in a browser (Chromium by Playwright), on a server with the demo model: tests/web/page.mjs."""
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "api"))
import packages  # noqa: E402
import server  # noqa: E402
import tap  # noqa: E402

BROWSERS = ["chromium", "chromium-browser", "google-chrome",
            "/Applications/Chromium.app/Contents/MacOS/Chromium",
            "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"]
KEY = "open sesame"


def main():
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    why = packages.missing() if browser else "Chromium is not here"
    if why:
        print(f"1..0 # SKIP {why}")
        return 0
    open_one = server.Server(models=(f"demo={server.DEMO}", f"second={server.DEMO}"))
    locked = server.Server("--api-key", KEY)
    done = subprocess.run(
        ["node", str(HERE / "page.mjs"), browser, f"http://127.0.0.1:{open_one.port}",
         f"http://127.0.0.1:{locked.port}", KEY],
        cwd=packages.WEB, timeout=tap.TIMEOUT_S, check=False)
    open_one.stop()
    locked.stop()
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
