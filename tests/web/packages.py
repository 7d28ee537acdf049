"""The npm packages of web/, which the suites of this folder share."""
import fcntl
import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tap  # noqa: E402

WEB = tap.ROOT / "web"
# Below it neither TypeScript's nor Vite's packages run.
NODE_MAJOR = 20


def npm(*arguments, **more):
    return subprocess.run(["npm", *arguments], cwd=WEB, capture_output=True, text=True, check=False,
                          timeout=tap.TIMEOUT_S, **more)


def missing():
    """Installs the packages as package-lock.json names them, once. Why they are not there, or nothing."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node or npm is not here"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version[1:].split(".")[0]) < NODE_MAJOR:
        return f"node is {version.strip()}, and {NODE_MAJOR} is needed"
    (tap.ROOT / "build").mkdir(exist_ok=True)
    stamp = WEB / "node_modules/installed.json"
    with open(tap.ROOT / "build/web-packages.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the suites run at the same time
        if stamp.exists() and filecmp.cmp(stamp, WEB / "package-lock.json", shallow=False):
            return None
        done = npm("ci", "--ignore-scripts")
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            return f"the packages cannot be installed: {said[-1] if said else 'npm failed'}"
        shutil.copy(WEB / "package-lock.json", stamp)
    return None
