#!/usr/bin/env python3
"""Ranks over MPI: what comm.h promises, the logits of ranks that are threads of one process bit by bit, and
every way to fail ends soon, with one sentence.

Builds mpi/consort beside the program under test, which costs two files. Skipped where Open MPI is not here.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "oracle"))

import make_models  # noqa: E402
import numpy as np  # noqa: E402
import tap  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
BUILD = Path(tap.CONSORT[-1]).resolve().parent
PROGRAM, EXCHANGE = BUILD / "mpi/consort", BUILD / "mpi/tests/support/mpi_exchange"
RANKS_LOGITS = BUILD / "tests/support/ranks_logits"
TIMEOUT_S = 120
TOLERANCE = 1e-4  # of F32 models: sums in another order
# Dense, experts, latent attention, norms of whole rows of q and k.
MODELS = ["llama-heads", "qwen3moe", "deepseek2", "olmo2"]
REFERENCES = ["llama", "gpt-oss", "deepseek3"]


def is_here():
    if shutil.which("mpirun") is None or shutil.which("mpicc") is None:
        return False
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False)
    return "Open MPI" in version.stdout


def build():
    targets = [PROGRAM, EXCHANGE, RANKS_LOGITS]
    done = subprocess.run(["make", "-s", "MPI=1", f"BUILD={os.path.relpath(BUILD, tap.ROOT)}",
                           *(os.path.relpath(t, tap.ROOT) for t in targets)],
                          cwd=tap.ROOT, capture_output=True, text=True, check=False)
    check(done.returncode == 0, "make MPI=1", done.stderr[-2000:])
    return done.returncode == 0


def launcher(n):
    words = ["mpirun", "--oversubscribe"] + (["--allow-run-as-root"] if os.geteuid() == 0 else [])
    return words + ["-n", str(n)]


def run(*words, env=None):
    """What a command came to; one that does not end has exit code None."""
    process = subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               stdin=subprocess.DEVNULL, text=True, env=env, start_new_session=True)
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return subprocess.CompletedProcess(words, None, out, err)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def mpirun(n, *words):
    return run(*launcher(n), *words)


def sentences(done):
    return [line for line in done.stderr.splitlines() if line.startswith("consort: ")]


# ---- Messages ------------------------------------------------------------------------------------


def messages():
    for n in (1, 2, 4):
        done = mpirun(n, EXCHANGE, "all")
        check(done.returncode == 0 and "all came" in done.stdout, f"messages between {n} ranks", done)
    for n in (2, 4):
        done = mpirun(n, EXCHANGE, "leave")
        check(done.returncode == 0 and done.stdout == f"rank {n - 1} has ended: it had enough\n",
              f"the last of {n} ranks ends, and all learn why", done)
    done = mpirun(3, EXCHANGE, "size")
    check(done.returncode not in (0, None) and "another size" in done.stdout,
          "a message of another size ends all", done)


# ---- Logits --------------------------------------------------------------------------------------


def logits(folder, launch, program, model, tokens, *options):
    out = Path(folder, "logits.f32")
    out.unlink(missing_ok=True)
    done = run(*launch, program, "logits", model, "--tokens", tokens, "--out", out, "-t", 1, *options)
    return out.read_bytes() if done.returncode == 0 and out.exists() else repr(done).encode()


def threads(folder, model, tokens, way, n):
    out = Path(folder, "threads.f32")
    done = run(RANKS_LOGITS, model, tokens, way, n, out)
    return out.read_bytes() if done.returncode == 0 else b""


def distance(found, expected):
    a, b = (np.frombuffer(x[:len(x) // 4 * 4], dtype="<f4").astype(np.float64) for x in (found, expected))
    return np.linalg.norm(a - b) / np.linalg.norm(b) if a.shape == b.shape else np.inf


def ways(model):
    """Placements and numbers of ranks that the model can be split over."""
    facts = json.loads(run(*tap.CONSORT, "show", model, "--json").stdout)
    for n in (2, 3, 4):
        if n <= facts["heads"]:
            yield "tensor", n
    for n in sorted({2, min(4, facts["layers"])}):
        yield "pipeline", n


def compare(folder, name, model, tokens):
    alone = logits(folder, [], tap.CONSORT[-1], model, tokens)
    check(logits(folder, launcher(1), PROGRAM, model, tokens, "--mpi") == alone, f"{name} on one rank")
    for way, n in ways(model):
        found = logits(folder, launcher(n), PROGRAM, model, tokens, "--mpi", "--placement", way)
        expected = threads(folder, model, tokens, way, n)
        label = f"{name} over {n} ranks, {way}"
        check(found == expected, f"{label}: bit by bit those of threads", found[:500])
        error = distance(found, alone)
        check(error < TOLERANCE, f"{label}: near those of one process", error)


def all_logits(folder):
    for name in MODELS:
        (case,) = [c for c in make_models.CASES if c.name == name]
        model, _ = make_models.make(case, Path(folder))
        compare(folder, name, model, model.with_suffix(".tokens"))
    for name in REFERENCES:
        model = tap.REFERENCE / f"arch/{name}.gguf"
        if model.exists():
            compare(folder, f"reference {name}", model, model.with_suffix(".tokens"))
        else:
            REPORT.skip(f"reference {name}", "the reference data are not here")


# ---- Bench ---------------------------------------------------------------------------------------


def bench(model):
    brief = ["-p", 8, "-n", 4, "-r", 1]
    done = mpirun(4, PROGRAM, "bench", model, "--mpi", *brief)
    check(done.returncode == 0 and done.stdout.count("decode ") == 1 and "4 ranks (tensor)" in done.stdout,
          "bench on 4 ranks prints once", done)
    done = mpirun(2, PROGRAM, "bench", model, "--mpi", "--placement", "pipeline", "--json", *brief)
    try:
        result = json.loads(done.stdout)
        good = result["ranks"] == 2 and result["placement"] == "pipeline"
    except (ValueError, KeyError):
        good = False
    check(good, "bench as JSON says what it ran on", done)


# ---- Failures ------------------------------------------------------------------------------------


def refused(name, done, pattern):
    said = sentences(done)
    check(done.returncode == 1 and len(said) == 1 and pattern in said[0], name,
          f"exit code {done.returncode}\n{done.stdout}{done.stderr}")


def failures(folder, model, tokens):
    away = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI"))}
    refused("without mpirun", run(PROGRAM, "bench", model, "--mpi", env=away), "mpirun -n 2")
    refused("more ranks than heads", mpirun(5, PROGRAM, "bench", model, "--mpi"), "too few for 5")
    refused("more ranks than layers", mpirun(4, PROGRAM, "bench", model, "--mpi", "--placement", "pipeline"),
            "4 ranks are too many for a pipeline")
    refused("no such file", mpirun(3, PROGRAM, "bench", "missing.gguf", "--mpi"), "missing.gguf")
    refused("a result that cannot be written", mpirun(
        3, PROGRAM, "logits", model, "--mpi", "--tokens", tokens, "--out", Path(folder, "no/such/folder")),
        "no/such/folder")
    two = [*launcher(1), PROGRAM, "bench", model, "--mpi", ":", "-n", "1", PROGRAM, "bench"]
    refused("the owner says what another rank lacks", run(*two, "missing.gguf", "--mpi"),
            "rank 1 has ended: ")
    other = Path(folder, "olmo2.gguf")
    refused("ranks with other models", run(*two, other, "--mpi"), "rank 1: the owner has another model")


def children(pid):
    table = subprocess.run(["ps", "-axo", "pid=,ppid=,comm="], capture_output=True, text=True, check=False)
    rows = [line.split(None, 2) for line in table.stdout.splitlines()]
    return sorted(int(r[0]) for r in rows if int(r[1]) == pid and "consort" in r[2])


def death(model):
    """A rank that dies takes the others with it, whether it is the owner or not."""
    for which in (0, 2):
        process = subprocess.Popen(
            [*launcher(3), str(PROGRAM), "bench", str(model), "--mpi", "-r", "1000", "-n", "64"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + TIMEOUT_S
        while len(children(process.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        ranks = children(process.pid)
        if len(ranks) == 3:
            os.kill(ranks[which], signal.SIGKILL)
        try:
            code = process.wait(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = None
        check(len(ranks) == 3 and code not in (0, None), f"rank {which} of 3 dies, and all end",
              f"ranks {ranks}, exit code {code}")


def main():
    if not is_here():
        print("1..0 # SKIP Open MPI is not here")
        return 0
    if not build():
        return REPORT.end()
    with tempfile.TemporaryDirectory(prefix="consort-mpi-") as folder:
        messages()
        all_logits(folder)
        model, tokens = Path(folder, "qwen3moe.gguf"), Path(folder, "qwen3moe.tokens")
        bench(model)
        failures(folder, model, tokens)
        death(model)
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
