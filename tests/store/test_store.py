#!/usr/bin/env python3
"""The store: names and files on disk, and what a server sees of them. Prints TAP."""
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "api"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "oracle"))
import gguf  # noqa: E402
import server  # noqa: E402
import tap  # noqa: E402

report = tap.Report()
check = report.check
DEMO = server.DEMO


class Result:
    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout.decode(), done.stderr.decode()

    def __str__(self):
        return f"exit code {self.code}\n{self.out}\n{self.err}"


class Home:
    """A store of its own in a new folder."""

    def __init__(self, folder):
        self.path = Path(tempfile.mkdtemp(dir=folder))
        self.models = self.path / "models"

    def environment(self, **more):
        return {**os.environ, "CONSORT_HOME": str(self.path), **more}

    def run(self, *arguments, **more):
        done = subprocess.run(tap.CONSORT + [str(a) for a in arguments], capture_output=True,
                              stdin=subprocess.DEVNULL, env=self.environment(**more),
                              timeout=tap.TIMEOUT_S, check=False)
        return Result(done)

    def list(self):
        return json.loads(self.run("list", "--json").out)

    def names(self):
        return [model["name"] for model in self.list()]

    def blobs(self):
        return sorted(os.listdir(self.models / "blobs"))


def split(folder, count=3):
    """The demo model in parts; the path of the first."""
    whole = gguf.File(DEMO)
    names = list(whole.tensors)
    paths = []
    for i in range(count):
        keys = dict(whole.keys) if i == 0 else {}
        keys.update({"split.no": i, "split.count": count, "split.tensors.count": len(names)})
        part = {name: whole.tensors[name] for name in names[i::count]}
        paths.append(Path(folder) / f"demo-{i + 1:05}-of-{count:05}.gguf")
        gguf.write(paths[-1], keys, part)
    return paths


def refused(name, result, pattern, code=1):
    check(result.code == code and pattern in result.err and result.err.count("\n") <= 2,
          f"refused: {name}", result)


def files(folder):
    home = Home(folder)
    nothing = home.run("list")
    check(nothing.code == 0 and nothing.out == "" and "consort pull" in nothing.err,
          "an empty store says how to fill it", nothing)
    check(home.list() == [], "an empty store is an empty list")
    pulled = home.run("pull", DEMO)
    check(pulled.code == 0 and pulled.out == "demo\n", "a file is pulled under its name", pulled)
    (model,) = home.list()
    check(model["name"] == "demo:latest" and model["size"] == DEMO.stat().st_size
          and Path(model["path"]).read_bytes() == DEMO.read_bytes(), "it is whole", model)
    check(stat.S_IMODE(os.stat(home.models).st_mode) == 0o700, "the store is its owner's alone")
    again = home.run("pull", DEMO, "--as", "Other/Demo:Q4", "--json")
    lines = [json.loads(line) for line in again.out.splitlines()]
    check(again.code == 0 and lines[-1] == {"status": "success"}
          and any(line.get("completed") == line.get("total") == model["size"] for line in lines),
          "progress as JSON lines", again)
    check(home.names() == ["Other/Demo:Q4", "demo:latest"] and len(home.blobs()) == 1,
          "two names, one file", home.names())
    table = home.run("list").out
    check("demo:latest" in table and "5.3 MiB" in table and model["digest"][7:19] in table,
          "the table shows name, size and digest", table)
    for name in ("demo", "demo:latest", "other/demo:q4"):
        shown = home.run("show", name)
        check(shown.code == 0 and "consort demo" in shown.out, f"show {name}", shown)
    answer = home.run("run", "demo", "-p", "hi", "-n", "3", "--seed", "1")
    direct = home.run("run", DEMO, "-p", "hi", "-n", "3", "--seed", "1")
    check(answer.code == 0 and answer.out == direct.out, "run takes a name", answer)
    refused("a name that is not there", home.run("run", "nosuch", "-p", "hi"), "consort list")
    refused("a file that is not there", home.run("show", "nosuch.gguf"), "nosuch.gguf")
    check(home.run("cp", "demo", "third").code == 0 and "third:latest" in home.names(), "cp")
    refused("cp of nothing", home.run("cp", "nosuch", "x"), "no model 'nosuch'")
    for name in ("../x", "/etc/x", "a//b", "a/", ".hidden", "a:b:c", "a:b/c", "a b", "", "x" * 300):
        refused(f"the name {name[:10]!r}", home.run("cp", "demo", name), "name of a model")
    removed = home.run("rm", "demo", "third")
    check(removed.code == 0 and removed.err == "" and len(home.blobs()) == 1,
          "a file stays while a name has it", removed)
    removed = home.run("rm", "other/demo:Q4")
    check(removed.code == 0 and home.blobs() == [] and "free" in removed.err,
          "and goes with the last", removed)
    refused("rm of nothing", home.run("rm", "demo"), "no model 'demo")
    check(DEMO.is_file(), "the file that was pulled is still there")


def broken_files(folder):
    home = Home(folder)
    bad = Path(folder) / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\xff" * 100)
    refused("a file that is no model", home.run("pull", bad), "bad.gguf")
    refused("a folder", home.run("pull", folder), "folder")
    refused("nothing", home.run("pull", Path(folder) / "none.gguf"), "none.gguf")
    check(home.blobs() == [] and home.names() == [], "nothing of it is in the store")
    check(home.run("pull", DEMO).code == 0, "a good one is")
    names = home.models / "names"
    digest = home.list()[0]["digest"]
    file = {"name": "x.gguf", "digest": digest, "size": DEMO.stat().st_size}
    hostile = {
        "no JSON": "{",
        "no object": "[]",
        "no name": json.dumps({"files": [file]}),
        "a bad name": json.dumps({"name": "../../x", "files": [file]}),
        "no files": json.dumps({"name": "a", "files": []}),
        "a negative size": json.dumps({"name": "a", "files": [{**file, "size": -1}]}),
        "a giant size": json.dumps({"name": "a", "files": [{**file, "size": 1 << 60}]}),
        "a digest with a path": json.dumps(
            {"name": "a", "files": [{**file, "digest": "sha256:../../../../etc/passwd"}]}),
        "a file name with a path": json.dumps({"name": "a", "files": [{**file, "name": "../x"}]}),
        "parts out of order": json.dumps({"name": "a", "files": [
            {**file, "name": "a-00002-of-00002.gguf"}, {**file, "name": "a-00001-of-00002.gguf"}]}),
        "deep nesting": "[" * 100000,
        "too long": " " * (5 << 20),
    }
    for what, text in hostile.items():
        (names / "a@latest.json").write_text(text)
        listed = home.run("list")
        check(listed.code == 1 and "demo:latest" in listed.out
              and ("broken" in listed.err or "larger than" in listed.err), f"a name with {what} is told, and the others listed",
              listed)
    check(home.run("rm", "a").code == 0 and home.names() == ["demo:latest"], "and can be removed")


def parts(folder):
    home = Home(folder)
    paths = split(folder)
    pulled = home.run("pull", paths[1])
    check(pulled.code == 0 and pulled.out == "demo\n" and "3 files" in pulled.err,
          "a split model is one", pulled)
    check(len(home.blobs()) == 3, "with three files")
    answer = home.run("run", "demo", "-p", "hi", "-n", "3", "--seed", "1")
    direct = home.run("run", DEMO, "-p", "hi", "-n", "3", "--seed", "1")
    check(answer.code == 0 and answer.out == direct.out, "it answers as the whole one", answer)
    check(home.run("cp", "demo", "b").code == 0 and home.run("rm", "demo").code == 0
          and home.run("show", "b").code == 0, "its copy stays")
    check(home.run("rm", "b").code == 0 and home.blobs() == []
          and os.listdir(home.models / "split") == [], "nothing is left")
    paths[2].unlink()
    refused("a missing part", home.run("pull", paths[0]), "part 3 of 3 is missing")
    check(home.blobs() == [], "and nothing of it came in")


def ids(running):
    return [model["id"] for model in running.json("GET", "/v1/models")[1]["data"]]


def complete(running, model):
    return running.json("POST", "/v1/completions", {"model": model, "prompt": "hi", "max_tokens": 2})


def serving(folder):
    home = Home(folder)
    running = server.Server(models=(), environment=home.environment())
    check(ids(running) == [], "a server over an empty store knows no model")
    check(complete(running, "demo")[0] == 404, "and says so")
    home.run("pull", DEMO)
    check(ids(running) == ["demo"], "a model that is pulled is there at once", ids(running))
    status, body = complete(running, "demo")
    check(status == 200 and body["model"] == "demo", "and answers", body)
    check(complete(running, "demo:latest")[0] == 200, "also with its tag")
    status, body = running.json("GET", "/api/tags")
    entry = body["models"][0]
    check(entry["digest"] == home.list()[0]["digest"][7:] and entry["size"] == DEMO.stat().st_size,
          "/api/tags has digest and size", entry)
    running.json("POST", "/api/generate", {"model": "demo", "keep_alive": 0})
    running.wait_log("closing demo")
    home.run("cp", "demo", "closed")
    entries = running.json("GET", "/api/tags")[1]["models"]
    check([e["details"]["family"] for e in entries] == ["llama", "llama"] and
          all(e["details"]["quantization_level"] == "F16" and e["details"]["parameter_size"] == "2.8M" for e in entries)
          and running.json("GET", "/api/ps")[1]["models"] == [], "and what closed models are", entries)
    home.run("rm", "closed")
    home.run("cp", "demo", "my/copy:x")
    check(sorted(ids(running)) == ["demo", "my/copy:x"], "a second name is seen", ids(running))
    home.run("rm", "demo")
    check(ids(running) == ["my/copy:x"] and complete(running, "demo")[0] == 404, "a name that goes too")
    check(complete(running, "my/copy:x")[0] == 200, "the other still answers")
    home.run("rm", "my/copy:x")
    check(ids(running) == [] and complete(running, "my/copy:x")[0] == 404, "until it goes")
    for i in range(3):
        home.run("pull", DEMO, "--as", "again")
        check(complete(running, "again")[0] == 200, f"a name may come back, {i}")
        home.run("rm", "again")
    check(running.stop() == 0, "the server ends well", running.log)
    home.run("pull", DEMO)
    running = server.Server(models=("demo", f"file={DEMO}"), environment=home.environment())
    check(ids(running) == ["demo", "file"], "a name may be named to stand first", ids(running))
    check(running.json("POST", "/v1/completions", {"prompt": "hi", "max_tokens": 1})[0] == 200,
          "the first is the default")
    check(running.stop() == 0, "the server ends well", running.log)


def main():
    with tempfile.TemporaryDirectory() as folder:
        for suite in (files, broken_files, parts, serving):
            suite(folder)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
