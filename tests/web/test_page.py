#!/usr/bin/env python3
"""The page in a browser (Chromium by Playwright), on servers with the demo model, alone and as two nodes of a
cluster: tests/web/page.mjs."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "api"))
sys.path.insert(0, str(HERE.parent / "cluster"))
import nodes  # noqa: E402
import packages  # noqa: E402
import server  # noqa: E402
import tap  # noqa: E402

BROWSERS = ["chromium", "chromium-browser", "google-chrome",
            "/Applications/Chromium.app/Contents/MacOS/Chromium",
            "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"]
KEY = "open sesame"


def begin_cluster(a, b):
    """Two nodes that compute the demo model together, each some of its layers."""
    a.command("init")
    a.up(models=[f"demo={server.DEMO}"])
    b.command("join", json.loads(a.command("token", "--json", "--address", a.cluster_address()))["token"])
    b.up("--peer", a.cluster_address())
    nodes.wait_for("both nodes see each other", lambda: a.names() == b.names() == {"a", "b"})
    nodes.wait_for("the digest of the model is known", lambda: "demo" in [
        m["id"] for m in b.json("GET", "/v1/models")[1]["data"]])
    a.command("load", "demo", "--placement", "pipeline")
    nodes.wait_for("the model runs", lambda: any(i["state"] == "running" for i in a.instances()))


def run(browser, *servers):
    origins = [f"http://127.0.0.1:{one.port}" for one in servers]
    return subprocess.run(["node", str(HERE / "page.mjs"), browser, *origins, KEY],
                          cwd=packages.WEB, timeout=tap.TIMEOUT_S, check=False).returncode


def main():
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    why = packages.missing() if browser else "Chromium is not here"
    if why:
        print(f"1..0 # SKIP {why}")
        return 0
    open_one = server.Server(models=(f"demo={server.DEMO}", f"second={server.DEMO}"))
    locked = server.Server("--api-key", KEY)
    a, b = nodes.Node("a"), nodes.Node("b")
    try:
        begin_cluster(a, b)
        return run(browser, open_one, locked, a)
    finally:
        for one in (open_one, locked):
            one.stop()
        for node in (b, a):
            node.down()


if __name__ == "__main__":
    sys.exit(main())
