#!/usr/bin/env python3
"""Clients that people use, from npm, against a live server with the demo model."""
import fcntl
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent / "api"))
import server  # noqa: E402
import tap  # noqa: E402

FOLDER = tap.ROOT / "build/clients"
CLIENTS = ["openai.mjs", "ollama.mjs", "anthropic.mjs", "vercel.mjs"]


def install():
    """The clients as package-lock.json names them, in build/. Why it failed, or nothing. Several suites
    may ask for them at a time."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node or npm is not here"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        return install_alone()


def install_alone():
    lock = FOLDER / "package-lock.json"
    installed = (FOLDER / "node_modules").is_dir() and lock.exists() and filecmp.cmp(
        lock, HERE / "package-lock.json", shallow=False)
    for name in ("package.json", "package-lock.json", ".npmrc", "report.mjs", "stream.mjs", *CLIENTS):
        shutil.copy(HERE / name, FOLDER)
    if installed:
        return None
    done = subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=FOLDER, capture_output=True, text=True,
                          check=False, timeout=tap.TIMEOUT_S)
    if done.returncode != 0:
        lock.unlink()
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "npm failed"
    return None


def main():
    why = install()
    if why:
        print(f"1..0 # SKIP the clients cannot be installed: {why}")
        return 0
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        encoder = server.made_up("bert-cls", Path(folder))
        live = server.Server(models=(f"demo={server.DEMO}", f"encoder={encoder}"),
                             environment={**os.environ, "CONSORT_HOME": folder})
        for client in CLIENTS:
            done = subprocess.run(["node", client, f"http://127.0.0.1:{live.port}/v1"], cwd=FOLDER,
                                  timeout=tap.TIMEOUT_S, check=False)
            code = max(code, done.returncode)
        live.stop()
    return code


if __name__ == "__main__":
    sys.exit(main())
