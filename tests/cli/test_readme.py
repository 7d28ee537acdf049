#!/usr/bin/env python3
"""README.md and ARCHITECTURE.md stay true: commands are typed as they stand there, what they show is
compared, and what is named is there.

A line of an sh block is a command that must end with 0; a server serves the rest of its block. In a console block "$ " begins a command, and
below is what it prints: what goes to standard output must be there, but for line ends.

Environment: CONSORT (the program under test).
"""
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "oracle"))

import make_models
from tap import CONSORT, ROOT, TIMEOUT_S, Report

README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = "models/demo.gguf"

# Commands that install or build are not typed. Of scripts the syntax is checked, of make that it would
# know what to do, and of packages that tools/install-packages names them too.
SCRIPTS = ("./start", "./check")
PACKAGES = ("apt-get install ", "brew install ")

# What the README asks the reader to have at hand.
FILES = {
    "question.txt": "What is consort?\n",
    "texts.txt": "the invoice is late\npayment has not arrived\n",
    "chat.jinja": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "case.json": '{"messages": [{"role": "user", "content": "Hello"}]}',
}
MODELS = {"embedding.gguf": "bert-cls", "reranker.gguf": "qwen3-rerank"}
AS_DEMO = ("model-f16.gguf", "base-model.gguf")  # the demo model stands in for these


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def prepare(folder):
    """The folder in which a reader would type, with consort installed."""
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, case_name in MODELS.items():
        (case,) = [c for c in make_models.CASES if c.name == case_name]
        shutil.move(make_models.make(case, folder)[0], folder / name)
    (folder / "text.txt").write_text(README, encoding="utf-8")
    (folder / "models").symlink_to(ROOT / "models")
    for name in AS_DEMO:
        (folder / name).symlink_to(ROOT / DEMO)
    program = folder / "build/consort"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(CONSORT)} "$@"\n')
    program.chmod(0o755)


def type_command(folder, command):
    path = f"{folder}/build:{os.environ['PATH']}"
    return subprocess.run(["sh", "-c", command], cwd=folder, env={**os.environ, "PATH": path},
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False)


def serve(report, folder, command):
    """Starts a server; its process where it became ready."""
    path = f"{folder}/build:{os.environ['PATH']}"
    process = subprocess.Popen(["sh", "-c", f"exec {command}"], cwd=folder, stderr=subprocess.PIPE,
                               env={**os.environ, "PATH": path}, text=True)
    line = process.stderr.readline()
    report.check("ready on" in line, command, line)
    return process


def stand_in(command):
    """What is run instead of a command that installs or builds; the command itself for others."""
    command = command.removeprefix("sudo ")
    if command in SCRIPTS:
        return f"sh -n {ROOT}/{command}"
    for words in PACKAGES:
        if command.startswith(words):
            packages = command.removeprefix(words).split()
            return " && ".join(f"grep -qw {p} {ROOT}/tools/install-packages" for p in packages)
    return command.replace("make", f"make -n -C {ROOT}", 1) if command.startswith("make") else command


def check_command(report, folder, command, shown=None):
    needs_demo = any(word in command for word in ("demo", "model", "ids.txt"))
    if needs_demo and not (ROOT / DEMO).exists():
        report.skip(command, f"there is no {DEMO}")
        return
    done = type_command(folder, stand_in(command))
    printed = done.stdout.decode("utf-8", "replace")
    good = done.returncode == 0
    if shown is not None:
        good = good and " ".join(printed.split()) in " ".join(shown.split())
    said = done.stderr.decode("utf-8", "replace")[-500:]
    report.check(good, command, f"exit code {done.returncode}\n{said}\n{printed[-2000:]}")


def links(report):
    """What is linked to is there: files, headings of this file and of others."""
    for target in sorted(set(re.findall(r"\]\(([^)]+)\)", README))):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        file = ROOT / path if path else ROOT / "README.md"
        found = file.is_file()
        if found and heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            found = heading in (re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles)
        report.check(found, f"README.md links to {target}")


def architectures(report):
    """The README's table has the architectures of the source, no more and no fewer."""
    source = (ROOT / "src/model/describe.c").read_text(encoding="utf-8")
    table = README.partition("| `general.architecture` |")[2].partition("\n\n")[0]
    listed = {name for row in table.splitlines()[2:] for name in re.findall(r"`(.*?)`", row.split("|")[1])}
    known = set(re.findall(r'\.name = "(.*?)"', source))
    report.check(listed == known and known, "README.md lists the architectures", listed ^ known)


def names(report):
    """What ARCHITECTURE.md names in the source is there: files by their end, identifiers anywhere."""
    files = [p for top in ("src", "tests", "tools", "bench") for p in (ROOT / top).rglob("*") if p.is_file()]
    files += [p for p in ROOT.iterdir() if p.is_file()]
    sources = (p.read_text(encoding="utf-8", errors="replace") for p in files
               if p.suffix in (".c", ".h", ".py") or p.name == "run-suites")
    words = set(re.findall(r"\w+", " ".join(sources)))
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r"`([\w/.-]+\.(?:c|h|py)|[a-z]+_\w+)`", text))):
        if not re.search("NAME|KIND|FOLDER", name):
            found = name in words or any(p.as_posix().endswith("/" + name) for p in files)
            report.check(found, f"ARCHITECTURE.md names {name}")


def main():
    report = Report()
    with tempfile.TemporaryDirectory(prefix="consort-readme-") as name:
        folder = Path(name)
        prepare(folder)
        for block in blocks("sh"):
            servers = []
            for command in block.splitlines():
                command = re.sub(r"\s+#.*", "", command)
                if command.startswith("consort up"):
                    servers.append(serve(report, folder, command))
                else:
                    check_command(report, folder, command)
            for server in servers:
                server.terminate()
                report.check(server.wait(timeout=TIMEOUT_S) == 0, "the server ends with 0")
        for block in blocks("console"):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, shown = part.split("\n", 1)
                check_command(report, folder, command, shown)
    links(report)
    architectures(report)
    names(report)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
