#!/usr/bin/env python3
"""consort pull over HTTP: both layouts, and what goes wrong on the way. Prints TAP."""
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import mirror as mirrors  # noqa: E402
from test_store import DEMO, Home, report, split, tap  # noqa: E402

check = report.check
MODEL = DEMO.read_bytes()
DIGEST = mirrors.sha256(MODEL)
MIDDLE = len(MODEL) // 2


def pull(home, mirror, source, *options, **environment):
    return home.run("pull", source, *options, "--mirror", mirror.url, **environment)


def refused(home, name, result, pattern):
    check(result.code == 1 and pattern in result.err, f"refused: {name}", result)
    check(home.names() == [] and home.blobs() == [], f"{name}: nothing is in the store",
          (home.names(), home.blobs()))


def whole(home, name):
    """Whether the store has the demo model under that name and nothing besides."""
    models = home.list()
    return ([model["name"] for model in models] == [name] and home.blobs() == [f"sha256-{DIGEST}"]
            and Path(models[0]["path"]).read_bytes() == MODEL
            and os.listdir(home.models / "partial") == [])


def registry(folder, mirror):
    home = Home(folder)
    texts = {"template": "{{ .Prompt }}", "system": "Be brief.", "license": "free as air",
             "params": {"temperature": 0.5, "stop": ["<x>"]},
             "messages": [{"role": "user", "content": "hi"}]}
    mirror.add_registry("demo", "1b", MODEL, **texts)
    done = pull(home, mirror, "demo:1b")
    check(done.code == 0 and done.out == "demo:1b\n" and whole(home, "demo:1b"), "a registry's model",
          done)
    manifest = json.loads((home.models / "names" / "demo@1b.json").read_text())
    check(manifest["system"] == "Be brief." and manifest["template"] == "{{ .Prompt }}"
          and manifest["license"] == "free as air" and manifest["parameters"] == texts["params"]
          and manifest["messages"] == texts["messages"], "with its texts", manifest)
    mirror.requests.clear()
    again = pull(home, mirror, "demo:1b", "--json")
    check(again.code == 0 and not any("blobs/sha256:" + DIGEST in path for path, _ in mirror.requests),
          "what is there is not fetched again", mirror.requests)
    statuses = [json.loads(line)["status"] for line in again.out.splitlines()]
    check(statuses[0] == "pulling manifest" and statuses[-1] == "success"
          and f"pulling {DIGEST[:12]}" in statuses, "the progress is told", statuses)
    refused(Home(folder), "an unknown model", pull(Home(folder), mirror, "nosuch"), "404")
    mirror.add_registry("latest-one", "latest", MODEL)
    home = Home(folder)
    check(home.run("pull", "latest-one", CONSORT_MIRROR=mirror.url).code == 0
          and whole(home, "latest-one:latest"), "the mirror may come from the environment")


def hub(folder, mirror):
    home = Home(folder)
    parts = {f"big/{path.name}": path.read_bytes() for path in split(folder)}
    mirror.add_hub("Owner/Repo-GGUF", {"README.md": b"x", "m-Q8_0.gguf": b"GGUF" + bytes(50),
                                       "m-Q4_K_M.gguf": MODEL, "m-Q4_K_S.gguf": b"GGUF" + bytes(60),
                                       "mmproj-Q4_K_M.gguf": b"x", **parts})
    for source, name in (("Owner/Repo-GGUF", "Owner/Repo-GGUF:latest"),
                         ("Owner/Repo-GGUF:Q4_K_M", "Owner/Repo-GGUF:Q4_K_M"),
                         ("Owner/Repo-GGUF:q4_k_m", "Owner/Repo-GGUF:q4_k_m"),
                         ("hf.co/Owner/Repo-GGUF:Q4_K_M", "hf.co/Owner/Repo-GGUF:Q4_K_M"),
                         ("Owner/Repo-GGUF:m-Q4_K_M.gguf", "Owner/Repo-GGUF:m-Q4_K_M")):
        home = Home(folder)
        done = pull(home, mirror, source)
        check(done.code == 0 and whole(home, name), f"a hub's model: {source}", done)
    home = Home(folder)
    done = pull(home, mirror, "Owner/Repo-GGUF:big/demo-00001-of-00003.gguf", "--as", "parts")
    check(done.code == 0 and len(home.blobs()) == 3 and home.run("show", "parts").code == 0,
          "all parts of a split one", done)
    home = Home(folder)
    refused(home, "a format that is not there", pull(home, mirror, "Owner/Repo-GGUF:Q2_K"), "m-Q8_0.gguf")
    refused(home, "a repository that is not there", pull(home, mirror, "Owner/Nothing"), "404")
    refused(home, "a file that is no model", pull(home, mirror, "Owner/Repo-GGUF:Q8_0"), "")
    mirror.add_hub("Owner/Unclear", {"a.gguf": MODEL, "b.gguf": MODEL})
    refused(home, "a choice that is not clear", pull(home, mirror, "Owner/Unclear"), "a.gguf, b.gguf")
    mirror.add_hub("Owner/Part", {"a-00001-of-00002.gguf": MODEL})
    refused(home, "a part without the others", pull(home, mirror, "Owner/Part"), "lacks")


def urls(folder, mirror):
    home = Home(folder)
    mirror.files["/x/My%20Model.gguf"] = mirror.files["/x/plain.gguf"] = MODEL
    done = home.run("pull", mirror.url + "/x/plain.gguf?token=geheim")
    check(done.code == 0 and whole(home, "plain:latest"), "a URL", done)
    said = done.out + done.err + "".join(path.read_text() for path in (home.models / "names").iterdir())
    check("geheim" not in said, "its query is not kept", said)
    home = Home(folder)
    linked = {"X-Linked-Etag": f'"{DIGEST}"'}
    mirror.troubles["/x/plain.gguf"] = [("headers", linked)]
    done = home.run("pull", mirror.url + "/x/plain.gguf", "--as", "b")
    check(done.code == 0 and whole(home, "b:latest"), "a URL that says the SHA-256", done)
    home = Home(folder)
    mirror.troubles["/x/plain.gguf"] = [("headers", {"X-Linked-Etag": '"' + "0" * 64 + '"'})]
    refused(home, "a URL that says another SHA-256", home.run("pull", mirror.url + "/x/plain.gguf"),
            "SHA-256")
    for path in split(folder):
        mirror.files[f"/s/{path.name}"] = path.read_bytes()
    done = home.run("pull", mirror.url + "/s/demo-00002-of-00003.gguf")
    check(done.code == 0 and home.names() == ["demo:latest"] and len(home.blobs()) == 3,
          "the URL of a part", done)
    home = Home(folder)
    for url in ("ftp://127.0.0.1/x.gguf", "file:///etc/passwd", "http://user:word@127.0.0.1/x.gguf"):
        result = home.run("pull", url)
        check(result.code == 1 and home.blobs() == [], f"refused: {url}", result)


def connections(folder, mirror):
    path = mirror.add_registry("demo", "latest", MODEL)
    home = Home(folder)
    mirror.reset()
    mirror.troubles[path] = [("cut", 100000), ("cut", MIDDLE), ("cut", 0), ("status", 503), None]
    done = pull(home, mirror, "demo")
    ranges = [headers.get("Range") for headers in mirror.asked(path)]
    check(done.code == 0 and whole(home, "demo:latest"), "connections that break", done)
    check(ranges[0] is None and ranges[1] == "bytes=100000-" and ranges[2] == ranges[4] != ranges[1],
          "each goes on where the last one ended", ranges)
    check(all("If-Range" in headers for headers in mirror.asked(path)[1:]), "if it is the same file")

    home = Home(folder)
    mirror.reset()
    mirror.troubles[path] = [("cut", MIDDLE), ("whole",)]
    done = pull(home, mirror, "demo")
    check(done.code == 0 and whole(home, "demo:latest"), "a server that knows no ranges", done)

    home = Home(folder)
    mirror.reset()
    mirror.files["/changes.gguf"] = b"GGUF" + bytes(len(MODEL))
    mirror.troubles["/changes.gguf"] = [("cut", MIDDLE)] + [("status", 500)] * 20
    home.run("pull", mirror.url + "/changes.gguf", "--tries", "2")
    check(home.names() == [] and home.blobs() == [], "a file that never came whole has no name")
    mirror.reset()
    mirror.files["/changes.gguf"] = MODEL
    done = home.run("pull", mirror.url + "/changes.gguf")
    check(done.code == 0 and whole(home, "changes:latest"), "a file that changed is fetched anew", done)

    home = Home(folder)
    mirror.reset()
    mirror.troubles[path] = [("hold", MIDDLE), None]
    done = pull(home, mirror, "demo", "--stall", "1")
    mirror.release()
    check(done.code == 0 and whole(home, "demo:latest") and len(mirror.asked(path)) >= 2,
          "a connection that stalls is opened anew", done)

    home = Home(folder)
    mirror.reset()
    mirror.troubles[path] = [("status", 500)] * 20
    refused(home, "a server that only fails", pull(home, mirror, "demo", "--tries", "3"), "500")
    check(len(mirror.asked(path)) == 3, "after as many tries as were asked for")
    mirror.reset()
    mirror.troubles[path] = [("status", 404)]
    refused(home, "a file that is not there", pull(home, mirror, "demo"), "404")
    refused(home, "no server", home.run("pull", "demo", "--mirror", "http://127.0.0.1:9", "--tries", "2"),
            "127.0.0.1")


def redirects(folder, mirror):
    path = mirror.add_registry("demo", "latest", MODEL)
    home = Home(folder)
    mirror.reset()
    mirror.files["/far"] = MODEL
    mirror.troubles[path] = [("redirect", mirror.url + "/far")]
    check(pull(home, mirror, "demo").code == 0 and whole(home, "demo:latest"), "a redirect")
    home = Home(folder)
    mirror.reset()
    mirror.files["/loop"] = b""
    mirror.troubles[path] = [("redirect", "/loop")]
    mirror.troubles["/loop"] = [("redirect", "/loop")] * 50
    refused(home, "redirects without end", pull(home, mirror, "demo"), "redirect")
    mirror.reset()
    mirror.troubles[path] = [("redirect", "file:///etc/passwd")]
    refused(home, "a redirect to a file of this machine", pull(home, mirror, "demo"), "")
    other = mirrors.Mirror()
    other.files["/x"] = MODEL
    mirror.add_hub("Owner/Private", {"m.gguf": MODEL})
    file = "/Owner/Private/resolve/main/m.gguf"
    mirror.reset()
    mirror.troubles[file] = [("redirect", f"http://localhost:{other.port}/x")]
    done = pull(home, mirror, "Owner/Private", HF_TOKEN="hf_geheim")
    check(done.code == 0 and mirror.asked(file)[0].get("Authorization") == "Bearer hf_geheim",
          "a token goes to the hub", done)
    check(other.requests and "Authorization" not in other.requests[0][1], "and nowhere else",
          other.requests)
    kept = "".join(path.read_text() for path in (home.models / "names").iterdir())
    check("geheim" not in done.out + done.err + kept, "and into no log")
    other.close()


def digests(folder, mirror):
    path = mirror.add_registry("demo", "latest", MODEL)
    home = Home(folder)
    mirror.reset()
    mirror.files[path] = MODEL[:MIDDLE] + b"!" + MODEL[MIDDLE + 1:]
    refused(home, "a file that is not what was announced", pull(home, mirror, "demo"), "SHA-256")
    check(os.listdir(home.models / "partial") == [], "nothing of it is kept")
    mirror.files[path] = MODEL + b"more"
    refused(home, "a file that is longer", pull(home, mirror, "demo"), "announced")
    mirror.files[path] = MODEL
    mirror.reset()
    mirror.troubles[path] = [("cut", MIDDLE)] + [("status", 500)] * 20
    pull(home, mirror, "demo", "--tries", "2")
    (left,) = [p for p in (home.models / "partial").iterdir() if p.suffix == ""]
    data = bytearray(left.read_bytes())
    data[1000] ^= 1
    left.write_bytes(data)
    mirror.reset()
    done = pull(home, mirror, "demo")
    check(done.code == 0 and whole(home, "demo:latest"), "a rest that was damaged is fetched again", done)


def hostile(folder, mirror):
    home = Home(folder)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{DIGEST}",
             "size": len(MODEL)}
    manifests = {
        "no JSON": (b"{", "no manifest"),
        "a page": (b"<html>", "no manifest"),
        "deep nesting": (b"[" * 200000, "no manifest"),
        "too much": (b" " * (5 << 20), "larger than"),
        "no layers": ({}, "no manifest"),
        "no model": ({"layers": []}, "no model file"),
        "a negative size": ({"layers": [{**layer, "size": -5}]}, "size"),
        "a giant size": ({"layers": [{**layer, "size": 1 << 62}]}, "size"),
        "more than the disk has": ({"layers": [{**layer, "size": 1 << 49}]}, "are free"),
        "a path for a digest": ({"layers": [{**layer, "digest": "sha256:../../x"}]}, "SHA-256"),
        "another digest": ({"layers": [{**layer, "digest": "md5:" + "0" * 32}]}, "SHA-256"),
        "an adapter": ({"layers": [layer, {**layer, "mediaType":
                                           "application/vnd.ollama.image.adapter"}]}, "adapter"),
        "many layers": ({"layers": [layer] * 2000}, "layers"),
        "numbers for layers": ({"layers": [1, None, "x"]}, "no model file"),
    }
    for what, (manifest, said) in manifests.items():
        mirror.add_manifest("bad", "latest", manifest)
        refused(home, "a manifest with " + what, pull(home, mirror, "bad"), said)
    for source in ("../x", "a/b/c", "a/../b", "demo:../x", "a b", "-x:y", "x:"):
        result = home.run("pull", "--mirror", mirror.url, "--", source)
        check(result.code == 1 and home.blobs() == [], f"refused: the name {source}", result)
    tree = [{"type": "file", "path": "../../../evil.gguf", "size": len(MODEL),
             "lfs": {"oid": DIGEST, "size": len(MODEL)}}]
    mirror.files["/api/models/o/r/tree/main"] = json.dumps(tree).encode()
    result = pull(home, mirror, "o/r")
    check(result.code == 1 and home.blobs() == [] and not list(Path(folder).rglob("evil.gguf")),
          "a path that leads out", result)


def wait_until(condition):
    deadline = time.monotonic() + tap.TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def start(home, mirror):
    return subprocess.Popen([*tap.CONSORT, "pull", "demo", "--mirror", mirror.url],
                            env=home.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kills(folder, mirror):
    path = mirror.add_registry("demo", "latest", MODEL)
    home = Home(folder)
    partial = home.models / "partial" / f"sha256-{DIGEST}"
    for kill, stop in ((signal.SIGKILL, MIDDLE), (signal.SIGINT, 100000)):
        mirror.reset()
        mirror.troubles[path] = [("hold", stop)]
        process = start(home, mirror)
        check(mirror.held.wait(tap.TIMEOUT_S) and wait_until(
            lambda: partial.exists() and partial.stat().st_size > 100000), "a pull under way")
        process.send_signal(kill)
        process.wait()
        process.stderr.close()
        mirror.release()
        check(home.names() == [] and home.blobs() == [], f"after {kill.name} nothing has a name")
    size = partial.stat().st_size
    mirror.reset()
    done = pull(home, mirror, "demo")
    check(done.code == 0 and whole(home, "demo:latest")
          and mirror.asked(path)[0].get("Range") == f"bytes={size}-", "the next pull goes on", done)


def abandoned(folder, mirror):
    path = mirror.add_registry("demo", "latest", MODEL)
    home = Home(folder)
    partial = home.models / "partial" / f"sha256-{DIGEST}"

    def interrupt():
        mirror.reset()
        mirror.troubles[path] = [("hold", MIDDLE)]
        process = start(home, mirror)
        check(mirror.held.wait(tap.TIMEOUT_S) and wait_until(
            lambda: partial.exists() and partial.stat().st_size > 100000), "a pull under way")
        working = home.run("rm", "--unfinished")
        check(working.code == 0 and partial.exists(), "what somebody works on stays", working)
        process.kill()
        process.wait()
        process.stderr.close()
        mirror.release()

    interrupt()
    listed = home.run("list")
    check(listed.code == 0 and "1 unfinished download (" in listed.err and "--unfinished" in listed.err,
          "list tells what was left", listed)
    removed = home.run("rm", "--unfinished")
    check(removed.code == 0 and "free again" in removed.err and os.listdir(home.models / "partial") == [],
          "rm --unfinished removes it", removed)
    interrupt()
    mirror.add_registry("other", "latest", MODEL + b"x")
    mirror.reset()
    check(pull(home, mirror, "other").code == 0 and partial.exists(), "a pull leaves what is young")
    for left in (home.models / "partial").iterdir():
        os.utime(left, (time.time() - 15 * 86400,) * 2)
    check(pull(home, mirror, "other").code == 0 and os.listdir(home.models / "partial") == [],
          "and removes what is two weeks old", os.listdir(home.models / "partial"))
    refuse = home.run("rm")
    check(refuse.code == 2 and "--unfinished" in refuse.err, "rm of nothing", refuse)


def at_once(folder, mirror):
    path = mirror.add_registry("demo", "latest", MODEL)
    home = Home(folder)
    mirror.reset()
    mirror.troubles[path] = [("hold", MIDDLE)]
    first = start(home, mirror)
    mirror.held.wait(tap.TIMEOUT_S)
    second = start(home, mirror)
    check(b"another pull" in second.stderr.readline(), "a second pull of the same waits")
    mirror.release()
    codes = [process.wait() for process in (first, second)]
    for process in (first, second):
        process.stderr.close()
    check(codes == [0, 0] and whole(home, "demo:latest") and len(mirror.asked(path)) == 1,
          "both end well, and the file came once", codes)
    home = Home(folder)
    mirror.reset()
    many = [start(home, mirror) for _ in range(6)]
    codes = [process.wait() for process in many]
    for process in many:
        process.stderr.close()
    check(codes == [0] * 6 and whole(home, "demo:latest"), "six at once", codes)


def disks(folder, mirror):
    small = Path(folder) / "small"
    small.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], capture_output=True,
            check=False).returncode != 0:
        report.skip("a full disk", "mounting a small one needs root")
        return
    try:
        path = mirror.add_registry("demo", "latest", MODEL)
        home = Home(small)
        mirror.reset()
        refused(home, "a disk that is too small", pull(home, mirror, "demo"), "are free")
        check(mirror.asked(path) == [], "that is known before anything is fetched")
        other = Path(folder) / "copy.gguf"
        shutil.copy(DEMO, other)
        refused(home, "a file on a disk that is too small", home.run("pull", other), "are free")
    finally:
        subprocess.run(["umount", small], check=False)


def certificates(folder):
    key, certificate = Path(folder) / "key.pem", Path(folder) / "certificate.pem"
    made = subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj",
                           "/CN=localhost", "-keyout", key, "-out", certificate, "-days", "2"],
                          capture_output=True, check=False) if shutil.which("openssl") else None
    if made is None or made.returncode != 0:
        report.skip("a certificate nobody vouches for", "openssl is not here")
        return
    mirror = mirrors.Mirror()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    mirror.server.socket = context.wrap_socket(mirror.server.socket, server_side=True)
    mirror.files["/x.gguf"] = MODEL
    home = Home(folder)
    refused(home, "a certificate nobody vouches for",
            home.run("pull", f"https://localhost:{mirror.port}/x.gguf"), "certificate")
    mirror.close()


def main():
    with tempfile.TemporaryDirectory() as folder:
        mirror = mirrors.Mirror()
        for suite in (registry, hub, urls, connections, redirects, digests, hostile, kills, abandoned, at_once,
                      disks):
            suite(folder, mirror)
        mirror.close()
        certificates(folder)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
