#!/usr/bin/env python3
"""The command line: exit codes, what goes to stdout and what to stderr, bad input, signals, and that the
man page and the completions know every command and option. Models are made here.

Environment: CONSORT (the program under test).
"""
import csv
import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "oracle"))

import gguf
import make_models
from tap import CONSORT, ROOT, TIMEOUT_S, Report

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
GREEDY = ("--temp", "0")
DEMO = ROOT / "models/demo.gguf"
REPORT = Report()
check = REPORT.check


# ---- The program and its models ------------------------------------------------------------------


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err.decode("utf-8", "replace")

    def __str__(self):
        return f"exit code {self.code}\nstdout {self.out[:300]!r}\nstderr {self.err[-600:]}"


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def run(*arguments, stdin=b"", **options):
    words = CONSORT + [str(a) for a in arguments]
    done = subprocess.run(
        words,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=TIMEOUT_S,
        **options,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def check_run(name, result, code=0, out=None, err=None):
    """out: what stdout must be; err: a pattern stderr must hold."""
    good = result.code == code
    good = good and (out is None or result.out == out)
    good = good and (err is None or re.search(err, result.err) is not None)
    check(good, name, result)
    return good


def refuse(name, result, pattern, code=1):
    """One sentence, nothing on stdout."""
    said = [line for line in result.err.splitlines() if line.startswith("consort: ")]
    check(
        result.code == code
        and result.out == b""
        and len(said) == 1
        and re.search(pattern, said[0]) is not None,
        name,
        result,
    )


def text_model(path, context=256, template=True, seed=1, layers=2):
    """A llama with a SentencePiece vocabulary that can spell any text."""
    rng = np.random.default_rng(seed)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    types = [2, 3, 3] + [6] * 256
    letters = ["\u2581"] + [chr(c) for c in range(ord("!"), ord("~") + 1)]
    tokens += letters + ["\u2581the", "\u2581a", "an", "\u00e9"]
    types += [1] * (len(tokens) - len(types))
    width, heads, head, kv, ff = 64, 2, 32, 1, 96
    keys = {
        "general.architecture": "llama",
        "general.name": "made for a test",
        "llama.context_length": context,
        "llama.embedding_length": width,
        "llama.block_count": layers,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv,
        "llama.feed_forward_length": ff,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(-i) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    if template:
        keys["tokenizer.chat_template"] = TEMPLATE

    def matrix(rows, cols):
        return rng.normal(0, 0.3, (rows, cols)).astype(np.float32)

    tensors = {
        "token_embd.weight": matrix(len(tokens), width),
        "output_norm.weight": np.ones(width, np.float32),
    }
    # Random weights may choose to end at once: the answers here are cut by -n.
    tensors["token_embd.weight"][:3] = 0
    for i in range(layers):
        for name, rows, cols in (
            ("attn_q", heads * head, width),
            ("attn_k", kv * head, width),
            ("attn_v", kv * head, width),
            ("attn_output", width, heads * head),
            ("ffn_gate", ff, width),
            ("ffn_up", ff, width),
            ("ffn_down", width, ff),
        ):
            tensors[f"blk.{i}.{name}.weight"] = matrix(rows, cols)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{i}.{name}.weight"] = np.ones(width, np.float32)
    gguf.write(path, keys, tensors)
    return path


def oracle_model(name, folder):
    """A model of the oracle's, by the name of its case."""
    (case,) = [c for c in make_models.CASES if c.name == name]
    return make_models.make(case, folder)[0]


# ---- Usage ---------------------------------------------------------------------------------------


def commands():
    return re.findall(r"^  ([a-z-]+) {2,}", run("help").out.decode(), re.MULTILINE)


def options_of(command):
    return re.findall(r"^  ..[, ] (--[a-z-]+)", run("help", command).out.decode(), re.MULTILINE)


def usage():
    check_run("--version", run("--version"), out=b"consort 0.1.0\n")
    check_run("no command", run(), 2, b"", "usage")
    check_run("help", run("help"), err=r"^$")
    check_run("--help", run("--help"), err=r"^$")
    known = commands()
    expected = (
        "run up key usage audit ps stop down pull list show cp rm init token join leave status doctor load "
        "unload remove rotate-key quantize imatrix perplexity embed bench plan tokenize render logits help".split()
    )
    check(known == expected, "every command is listed", known)
    for command in known:
        by_help, by_option = run("help", command), run(command, "--help")
        check(
            by_help.code == 0 and by_help.out == by_option.out and by_help.err == "",
            f"help {command} and {command} --help agree",
            by_option,
        )
    for arguments, pattern in (
        (["rnu"], "did you mean run"),
        (["xyzzy"], "unknown command 'xyzzy'"),
        (["help", "rnu"], "did you mean run"),
        (["--frobnicate"], "unknown option --frobnicate"),
        (["run"], "needs MODEL"),
        (["run", "m", "n"], "unexpected argument 'n'"),
        (["run", "m", "--tmep", "1"], "did you mean --temp"),
        (["run", "m", "-x"], "unknown option -x"),
        (["run", "m", "--ctx", "0"], "--ctx takes a whole number"),
        (["run", "m", "--ctx", "-5"], "--ctx takes a whole number"),
        (["run", "m", "--ctx", "99999999999999999999999"], "--ctx takes a whole number"),
        (["run", "m", "--ctx", "12x"], "--ctx takes a whole number"),
        (["run", "m", "--ctx", ""], "--ctx takes a whole number"),
        (["run", "m", "--ctx"], "--ctx needs a value"),
        (["run", "m", "--temp", "nan"], "--temp takes a number"),
        (["run", "m", "--temp=-1"], "--temp takes a number"),
        (["run", "m", "--temp", "1e99"], "--temp takes a number"),
        (["run", "m", "--top-p", "1.5"], "from 0 to 1"),
        (["run", "m", "--threads", "0"], "from 1 to 1024"),
        (["run", "m", "--kv-type", "q4_0"], "f16|f32|q8_0"),
        (["run", "m", "--seed", "-1"], "--seed"),
        (["run", "m", "--logit-bias", "5"], "ID=BIAS"),
        (["run", "m", "--logit-bias", "5=nan"], "ID=BIAS"),
        (["run", "m", "--json=yes"], "takes no value"),
        (["run", "m", "-p", "a", "-f", "b"], "cannot be given together"),
        (["run", "m", "--raw"], "needs a prompt"),
        (["run", "m", "--speculate", "much"], "off|ngram|draft|auto"),
        (["run", "m", "--speculate", "draft"], "needs a draft model"),
        (["run", "m", "--speculate", "off", "--draft", "d"], "of no use with --speculate off"),
        (["run", "m", "--draft-max", "32"], "from 1 to 31"),
        (["bench", "m", "--speculate", "draft"], "needs a draft model"),
        (["logits", "m"], "--tokens FILE and --out FILE"),
        (["render", "t"], "--input"),
        (["render", "t", "--input", "c", "--now", "yesterday"], "not a time"),
        (["quantize", "a", "b"], "needs IN OUT FORMAT"),
        (["quantize", "a", "b", "Q9_X"], "unknown format 'Q9_X'"),
        (["imatrix", "a", "b"], "needs -o FILE"),
        (["bench", "m", "-p", "1,,2"], "is not a list"),
        (["bench", "m", "-b", "0"], "is not a list"),
        (["bench", "m", "-c", "1,2x"], "is not a list"),
        (["bench", "m", "-o", "a"], "--output is for --sweep"),
        (["bench", "m", "--sweep", "-p", "8,16"], "one length"),
        (["bench", "m", "--placement", "tensor"], "--placement is for --mpi"),
        (["bench", "m", "--mpi", "--speculate", "ngram"], "without --speculate"),
        (["perplexity", "m"], "needs MODEL TEXT"),
    ):
        refuse("usage: " + " ".join(arguments), run(*arguments), pattern, 2)
    refuse("ranks over MPI in a build without", run("bench", "m", "--mpi"), "make MPI=1")


def documents():
    manual = (ROOT / "docs/consort.1").read_text().replace("\\-", "-")
    script = (
        f'source "{ROOT}/docs/completions/consort.bash"; COMP_WORDS=("$@"); '
        'COMP_CWORD=$(($# - 1)); _consort; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    program = f"/tmp/consort-completion-{os.getpid()}"
    Path(program).write_text("#!/bin/sh\nexec " + " ".join(CONSORT) + ' "$@"\n')
    os.chmod(program, 0o755)

    def complete(*words):
        done = subprocess.run(
            ["bash", "-c", script, "bash", program, *words], capture_output=True, check=False
        )
        return done.stdout.decode().split()

    try:
        found = complete("")
        check(set(commands()) <= set(found), "bash completes every command", found)
        check(complete("quan") == ["quantize"], "bash completes a command begun")
        choices = complete("run", "m", "--kv-type", "")
        check(choices == ["f16", "f32", "q8_0"], "bash completes a choice", choices)
        for command in commands():
            options = options_of(command)
            check(f".SS consort {command}" in manual, f"the man page has {command}")
            missing = [o for o in options if f"\\fB{o}\\fR" not in manual]
            check(not missing, f"the man page has the options of {command}", missing)
            missing = set(options) - set(complete(command, "-"))
            check(not missing, f"bash completes the options of {command}", missing)
    finally:
        os.unlink(program)


# ---- Bad files -----------------------------------------------------------------------------------


def bad_files(folder, model):
    whole = model.read_bytes()
    cases = {
        "missing": (folder / "missing.gguf", "cannot open|No such file"),
        "folder": (folder, "folder|directory|regular file"),
    }
    for name, data in (
        ("empty", b""),
        ("text", b"this is not a model\n" * 100),
        ("header-only", whole[:24]),
        ("cut in the metadata", whole[:2000]),
        ("cut in the tensors", whole[:-2000]),
    ):
        path = folder / f"bad-{len(cases)}.gguf"
        path.write_bytes(data)
        cases[name] = (path, ".")
    text = folder / "bad.txt"
    text.write_text("some text")
    for name, (path, pattern) in cases.items():
        for command, rest in (
            ("run", ["-p", "hello"]),
            ("show", []),
            ("tokenize", []),
            ("bench", []),
            ("embed", ["x"]),
            ("quantize", [folder / "never.gguf", "Q4_K_M"]),
            ("perplexity", [text]),
            ("imatrix", [text, "-o", folder / "never.gguf"]),
        ):
            refuse(f"{command}, file {name}", run(command, path, *rest), pattern)
    check(
        not list(folder.glob("never*")),
        "no output of a failed command",
        list(folder.glob("never*")),
    )
    unknown = folder / "unknown.gguf"
    gguf.write(unknown, {"general.architecture": "abacus"}, {})
    refuse("show, unknown architecture", run("show", unknown), "abacus.*llama")


# ---- run -----------------------------------------------------------------------------------------


def run_answers(folder, model):
    raw = run("run", model, "--raw", "-p", "Hello", "-n", 20, *GREEDY)
    check_run("run --raw", raw, err="context 256 tokens")
    check(raw.out.endswith(b"\n") and len(raw.out) > 1, "the answer ends its line", raw)
    check(raw.out.decode("utf-8", "strict") is not None, "the answer is UTF-8")
    for threads in (1, 2, 3):
        again = run("run", model, "--raw", "-p", "Hello", "-n", 20, "-t", threads, *GREEDY)
        check(again.out == raw.out, f"the same answer on {threads} threads", again)
    seeded = ["run", model, "--raw", "-p", "Hello", "-n", 20, "--temp", "2", "--seed"]
    first = run(*seeded, 5, "-t", 1)
    check(run(*seeded, 5, "-t", 2).out == first.out, "the same seed, the same answer")
    check(run(*seeded, 6).out != first.out, "another seed, another answer")
    check_run("run -n 0", run("run", model, "--raw", "-p", "a", "-n", 0), out=b"\n")
    by_file, by_stdin = folder / "prompt", b"Hello"
    by_file.write_bytes(by_stdin)
    check_run(
        "prompt from a file",
        run("run", model, "--raw", "-f", by_file, "-n20", "--temp=0"),
        out=raw.out,
    )
    check_run(
        "prompt from stdin",
        run("run", model, "--raw", "-p", "-", "-n", 20, *GREEDY, stdin=by_stdin),
        out=raw.out,
    )
    for kv in ("f16", "f32", "q8_0"):
        check_run(
            f"run --kv-type {kv}", run("run", model, "--raw", "-p", "a", "-n", 5, "--kv-type", kv)
        )
    everything = (
        "--top-k 5 --top-p 0.9 --min-p 0.1 --typical 0.9 --repeat-penalty 1.1 --repeat-last-n 9"
    )
    everything += (
        " --presence-penalty 0.1 --frequency-penalty 0.1 --dry-multiplier 0.8 --dry-base 2"
    )
    everything += (
        " --dry-allowed-length 1 --dry-last-n 50 --xtc-probability 0.5 --xtc-threshold 0.1"
    )
    everything += " --logit-bias 70=2 --logit-bias 71=-inf --seed 9"
    check_run(
        "every sampler", run("run", model, "--raw", "-p", "aa", "-n", 30, *everything.split())
    )
    refuse(
        "a bias out of the vocabulary",
        run("run", model, "--raw", "-p", "a", "--logit-bias", "99999=1"),
        "99999",
    )
    only = run("run", model, "--raw", "-p", "a", "-n", 3, "--logit-bias", "324=100", *GREEDY)
    answer = run(
        "run", model, "--raw", "-p", "a", "-n", 3, "--logit-bias", "324=100", *GREEDY, "--json"
    )
    check(
        only.out != raw.out and json.loads(answer.out)["answer_tokens"] == 3, "logit bias", answer
    )


def run_limits(model):
    long = run("run", model, "--raw", "-p", "x" * 1000, "-n", 5)
    refuse("a prompt longer than the context", long, r"1\d\d\d tokens.*256")
    full = run("run", model, "--raw", "-p", "x" * 200, *GREEDY, "--logit-bias", "2=-inf")
    check_run("the context fills up", full, err="context of 256 tokens is full")
    refuse("more context than memory", run("run", model, "-p", "x", "--ctx", 268435456), "--ctx")
    refuse(
        "more context than possible",
        run("run", model, "-p", "x", "--ctx", 4000000000),
        "4000000000",
    )
    check_run("an empty prompt in a chat", run("run", model, "-p", "", "-n", 2))


def run_json(model):
    done = run("run", model, "-p", "Hello", "-n", 7, "--json", "--seed", 1)
    value = json.loads(done.out)
    check(
        value["answer_tokens"] <= 7
        and value["stop"] in ("length", "end")
        and value["seed"] == 1
        and value["prompt_tokens"] > 5
        and isinstance(value["text"], str),
        "run --json",
        done,
    )
    turns = run(
        "run", model, "-n", 4, "--json", *GREEDY, stdin=b"Hello\nAnd now?\n/retry\n/nonsense\n"
    )
    lines = [json.loads(line) for line in turns.out.splitlines()]
    check(len(lines) == 3, "a chat from a pipe", turns)
    check(
        len(lines) == 3 and lines[0]["reused_tokens"] == 0 and lines[1]["reused_tokens"] > 10,
        "the second turn keeps the first in the cache",
        turns,
    )
    check("unknown command /nonsense" in turns.err, "an unknown chat command", turns)
    said = [line["text"] for line in lines]
    conversation = f"[user]Hello[assistant]{said[0]}[user]And now?[assistant]"
    fresh = json.loads(
        run("run", model, "-n", 4, "--json", "--raw", *GREEDY, "-p", conversation).out
    )
    check(
        fresh["text"].lstrip(" ") == said[1].lstrip(" "),
        "a kept prefix changes no answer",
        (said, fresh),
    )
    system = run(
        "run", model, "-n", 4, "--json", "--system", "Be short.", *GREEDY, stdin=b"Hello\n"
    )
    longer = json.loads(system.out)["prompt_tokens"] - lines[0]["prompt_tokens"]
    check(longer >= len("[system]Be short."), "the system prompt", system)


def run_drafts(folder, model):
    """Drafts change no text, whatever they are made of; what they came to is said."""
    small = text_model(folder / "small.gguf", layers=1, seed=2)
    prompt = "the cat sat on the mat. " * 5
    kinds = (
        ["--speculate", "ngram"],
        ["--speculate", "auto", "--draft-max", "3"],
        ["--speculate", "draft", "--draft", model],
        ["--draft", small],
    )
    for sampling in (GREEDY, ("--temp", "1", "--seed", "3", "--repeat-penalty", "1.1")):
        asked = ["run", model, "--raw", "-p", prompt, "-n", 70, "--json", *sampling]
        plain = json.loads(run(*asked, "--speculate", "off").out)
        check(
            plain["drafted_tokens"] == plain["accepted_tokens"] == 0,
            "no drafts with --speculate off",
            plain,
        )
        for kind in kinds:
            done = run(*asked, *kind)
            value = json.loads(done.out)
            check(
                value["text"] == plain["text"]
                and value["drafted_tokens"] >= value["accepted_tokens"]
                and (value["drafted_tokens"] == 0)
                == ("accepted; seed" not in done.err),
                f"the same text with {kind[0]} {kind[1]} {sampling[1]}",
                done,
            )
    turns = b"one two three one two three\nagain\nand again\n"
    plain = run("run", model, "-n", 20, *GREEDY, "--speculate", "off", stdin=turns)
    drafting = run("run", model, "-n", 20, *GREEDY, "--draft", model, stdin=turns)
    check(plain.out == drafting.out, "the same chat", drafting)
    if DEMO.exists():
        refuse(
            "a draft model with another vocabulary",
            run("run", model, "-p", "x", "--draft", DEMO),
            "another vocabulary: token 0 is '.+' there and '<unk>' in the model",
        )
        whole = ["run", DEMO, "-p", "What is GGUF?", *GREEDY]
        plain = run(*whole, "--speculate", "off")
        check_run("the demo model with drafts", run(*whole), out=plain.out)
    refuse("a draft model that is missing", run("run", model, "-p", "x", "--draft", "no"), "'?no")
    bert = oracle_model("bert-cls", folder)
    refuse("an embedding model drafts nothing", run("run", model, "-p", "x", "--draft", bert), ".")


def run_template(folder):
    plain = text_model(folder / "plain.gguf", template=False)
    check_run("ChatML without a template", run("run", plain, "-p", "Hi", "-n", 3), err="ChatML")
    broken = folder / "broken.gguf"
    keys = dict(gguf.File(plain).keys)
    tensors = dict(gguf.File(plain).tensors)
    keys["tokenizer.chat_template"] = "{% for m in messages %}"
    gguf.write(broken, keys, tensors)
    refuse("a broken template", run("run", broken, "-p", "Hi"), "line")
    check_run(
        "a broken template is not read for --raw", run("run", broken, "--raw", "-p", "Hi", "-n", 2)
    )


# ---- Signals and lost output ---------------------------------------------------------------------


def start(*arguments, **options):
    return subprocess.Popen(
        CONSORT + [str(a) for a in arguments],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        **options,
    )


def signals(folder):
    model = text_model(folder / "long.gguf", context=100000)
    forever = ["run", model, "--raw", "-p", "a", "--logit-bias", "2=-inf"]
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start(*forever, stdout=subprocess.PIPE)
        process.stdout.read(5)
        process.send_signal(number)
        rest, err = process.communicate(timeout=TIMEOUT_S)
        check(
            process.returncode == 1 and b"consort: interrupted" in err,
            f"{number.name} ends a single answer",
            f"{process.returncode} {err}",
        )
    process = start(*forever, stdout=subprocess.PIPE)
    process.stdout.read(5)
    process.stdout.close()
    _, err = process.communicate(timeout=TIMEOUT_S)
    check(
        process.returncode in (0, -signal.SIGPIPE) and b"consort:" not in err,
        "a reader that leaves ends it quietly",
        f"{process.returncode} {err}",
    )
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            process = start("run", model, "--raw", "-p", "a", "-n", 5, stdout=full)
            _, err = process.communicate(timeout=TIMEOUT_S)
        check(
            process.returncode == 1 and b"cannot write to standard output" in err,
            "a full disk is an error",
            f"{process.returncode} {err}",
        )
    closed = " ".join(CONSORT)
    for redirect, code in ((">&-", 1), ("<&-", 0), ("2>&-", 0)):
        done = subprocess.run(
            ["sh", "-c", f'{closed} show "$1" {redirect}', "sh", str(model)],
            capture_output=True,
            check=False,
        )
        check(done.returncode == code, f"started with {redirect}", done)


def interrupted_quantize(folder):
    """Nothing of an interrupted conversion stays, not even its temporary file."""
    model, out = folder / "large.gguf", folder / "interrupted.gguf"
    rng = np.random.default_rng(3)
    tensors = {
        f"blk.{i}.ffn_up.weight": rng.normal(0, 1, (2048, 2048)).astype(np.float32)
        for i in range(4)
    }
    gguf.write(model, {"general.architecture": "llama"}, tensors)
    deadline, finished = time.monotonic() + TIMEOUT_S, True
    while finished and time.monotonic() < deadline:  # again where it was done before the signal came
        out.unlink(missing_ok=True)
        process = start("quantize", model, out, "Q2_K", "-t", 1, stdout=subprocess.PIPE)
        while not list(folder.glob("interrupted*")) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
        finished = process.returncode == 0
    left = list(folder.glob("interrupted*"))
    check(
        process.returncode == 1 and not left,
        "SIGINT leaves no file",
        f"{process.returncode} {err} {left}",
    )
    model.unlink()


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, *arguments):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            words = CONSORT + [str(a) for a in arguments]
            os.execvp(words[0], words)
        self.seen = b""

    def wait_for(self, text, seconds=60):
        """Whether text comes; what was seen up to it is forgotten."""
        deadline = time.monotonic() + seconds
        while text not in self.seen and time.monotonic() < deadline:
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    data = os.read(self.fd, 4096)
                except OSError:
                    break
                if not data:
                    break
                self.seen += data
        found = text in self.seen
        self.seen = self.seen.partition(text)[2] if found else self.seen
        return found

    def type(self, data):
        try:
            os.write(self.fd, data)
        except OSError:
            pass  # the program has ended

    def type_until(self, data, text):
        """Types data until text comes: what is typed while the terminal changes its mode is lost."""
        for _ in range(20):
            self.type(data)
            if self.wait_for(text, 3):
                return True
        return False

    def end(self, key=b""):
        """The exit code; key is typed until the program ends. One that does not end is killed."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if key:
                self.type(key)
            self.wait_for(b"nothing comes any more", 0.2)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def terminal(folder):
    try:
        for fd in pty.openpty():
            os.close(fd)
    except OSError as problem:  # a bare chroot has no pseudo-terminals
        REPORT.skip("a chat on a terminal", problem)
        return
    model = text_model(folder / "chat.gguf", context=50000)
    # No answer may end, nor hold what looks like the next prompt.
    tokens = gguf.File(model).keys["tokenizer.ggml.tokens"]
    forbidden = [tokens.index(text) for text in ("</s>", ">", "<0x3E>")]
    biases = [word for id in forbidden for word in ("--logit-bias", f"{id}=-inf")]
    chat = Terminal("run", model, "-t", 1, *biases)
    check(chat.wait_for(b"Ctrl-D ends") and chat.wait_for(b"> "), "a chat asks", chat.seen)
    check(chat.type_until(b"/help\r", b"/clear") and chat.wait_for(b"> "), "/help", chat.seen)
    check(chat.type_until(b"never sent\x03", b"> "), "Ctrl-C drops the line", chat.seen)
    check(chat.type_until(b"Hello\r", b"Hello\r\n"), "a question is echoed", chat.seen)
    check(
        chat.type_until(b"\x03", b"\r\n> "),
        "Ctrl-C stops the answer and asks again",
        chat.seen[-200:],
    )
    check(chat.end(b"\x04") == 0, "Ctrl-D ends the chat", chat.seen)
    chat = Terminal("run", model, "-t", 1)
    check(chat.wait_for(b"> "), "another chat asks", chat.seen)
    os.kill(chat.pid, signal.SIGTERM)
    code = chat.end()
    check(code in (0, 1), "SIGTERM ends a chat", (code, chat.seen))


# ---- The other commands --------------------------------------------------------------------------


def show(model):
    text = run("show", model)
    check_run("show", text, err="^$")
    for word in (
        "llama",
        "parameters",
        "context",
        "heads",
        "vocabulary",
        "template",
        "memory",
        "F32 100",
    ):
        check(word in text.out.decode(), f"show says {word}", text)
    small, large = (
        json.loads(run("show", model, "--json", "--ctx", n, "--kv-type", kv).out)
        for n, kv in ((128, "q8_0"), (1280, "f32"))
    )
    check(
        large["memory"]["kv_bytes"] > 10 * small["memory"]["kv_bytes"],
        "memory by context",
        (small, large),
    )
    file = gguf.File(model)
    count = sum(int(np.prod(shape)) for _, shape, _ in file.tensors.values())
    check(small["parameters"] == count and small["template"] is True, "show --json", small)
    tensors = json.loads(run("show", model, "--json", "--tensors").out)["tensors"]
    check([t["name"] for t in tensors] == list(file.tensors), "show --tensors --json")
    listed = run("show", model, "--tensors").out.decode()
    check(all(name in listed for name in file.tensors), "show --tensors")


def logits(folder, model):
    tokens, out = folder / "tokens", folder / "out"
    tokens.write_text("1 300 301\n302\n")
    check_run("logits", run("logits", model, "--tokens", tokens, "--out", out), out=b"")
    size = len(gguf.File(model).keys["tokenizer.ggml.tokens"])
    check(out.stat().st_size == 4 * size * 4, "logits of every position", out.stat().st_size)
    out.unlink()
    for text, pattern in (
        ("1 x 2", "'x' is not a token id"),
        ("1 -2", "'-2' is not a token id"),
        ("", "no token ids"),
        ("1 99999", "99999"),
        ("1 9999999999999", "not a token id"),
    ):
        tokens.write_text(text)
        refuse(
            f"logits of {text!r}", run("logits", model, "--tokens", tokens, "--out", out), pattern
        )
    refuse(
        "logits without a file",
        run("logits", model, "--tokens", folder / "none", "--out", out),
        "open",
    )
    tokens.write_text("1")
    refuse(
        "logits into no folder",
        run("logits", model, "--tokens", tokens, "--out", folder / "none/out"),
        "cannot create",
    )
    check(not out.exists(), "no output of failed logits")


def tokenize(model):
    plain = run("tokenize", model, "--no-special", stdin=b"<s>a")
    special = run("tokenize", model, stdin=b"<s>a")
    check(plain.code == special.code == 0 and plain.out.count(b"\n") == 1, "tokenize", plain)
    check(
        b"1" not in plain.out.split() and len(plain.out.split()) > 3,
        "--no-special spells <s>",
        plain,
    )
    check(special.out.split()[:2] == [b"1", b"1"], "BOS and <s> are tokens", special)
    check_run("tokenize nothing", run("tokenize", model, "--no-special"), out=b"\n")
    check_run("tokenize bytes", run("tokenize", model, stdin=bytes(range(256))))


def render(folder):
    source, case = folder / "t.jinja", folder / "case.json"
    source.write_text("{{ a }}|{{ strftime_now('%Y-%m-%d %H:%M') }}")
    case.write_text('{"a": "x\\u00e9"}')
    words = ["render", source, "--input", case, "--now"]
    check_run("render", run(*words, "2026-01-02T03:04:05"), out="xé|2026-01-02 03:04".encode())
    check_run(
        "render, zone", run(*words, "2024-02-29T23:30:00-02:00"), out="xé|2024-03-01 01:30".encode()
    )
    check_run("render, date", run(*words, "1999-12-31"), out="xé|1999-12-31 00:00".encode())
    for text, pattern in (("[1]", "object"), ("{", "line 1"), ('{"a": ', "line 1")):
        case.write_text(text)
        refuse(f"render with {text}", run("render", source, "--input", case), pattern)
    case.write_text("{}")
    source.write_text("\n{% if %}")
    refuse("render, broken template", run("render", source, "--input", case), "line 2")


def quantize(folder, model, text):
    out = folder / "quantized.gguf"
    sizes = {}
    formats = (
        "F16 BF16 Q8_0 Q6_K Q5_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS"
    )
    for name in (formats + " MXFP4 Q3_K Q3_K_L Q3_K_M Q3_K_S Q2_K Q2_K_M Q2_K_S F32").split():
        done = run("quantize", model, out, name)
        if not check_run(f"quantize to {name}", done):
            continue
        sizes[name] = out.stat().st_size
        check("ffn_down" in done.out.decode() or name == "F32", f"{name} says its error", done)
        check_run(f"run {name}", run("run", out, "--raw", "-p", "a", "-n", 2))
    check(
        sizes["Q4_0"] < sizes["Q8_0"] < sizes["F16"] < sizes["F32"],
        "smaller formats, smaller files",
        sizes,
    )
    run("quantize", model, out, "q4_0")
    keys = gguf.File(out).keys
    check(
        keys["general.file_type"] == 2
        and keys["general.quantization_version"] == 2
        and keys["tokenizer.chat_template"] == TEMPLATE,
        "keys of the new file",
    )
    again = folder / "again.gguf"
    refuse("quantised input", run("quantize", out, again, "Q8_0"), "--requantize")
    check(not again.exists(), "no file after a refusal")
    check_run("--requantize", run("quantize", out, again, "Q8_0", "--requantize"))
    refuse("the input as output", run("quantize", model, model, "Q8_0"), "is the input")
    refuse("standard output as output", run("quantize", model, "-", "Q8_0"), "OUT is a path")
    older = folder / "older.dat"
    older.write_bytes(b"\x01\0\0\0older")
    refuse(
        "an importance matrix in the older form",
        run("quantize", model, out, "Q4_0", "--imatrix", older),
        r"\.dat form.*gguf",
    )
    limited = folder / "limited.gguf"
    done = run("quantize", model, limited, "F32", preexec_fn=limit_files)
    refuse("a file too large for the system", done, "File too large")
    check(not list(folder.glob("limited*")), "nothing is left of it")
    refuse(
        "no such folder",
        run("quantize", model, folder / "no/where.gguf", "Q8_0"),
        "cannot write to|cannot create",
    )
    matrix = folder / "importance.gguf"
    check_run(
        "imatrix", run("imatrix", model, text, "-o", matrix, "--ctx", 64, "--chunks", 3), out=b""
    )
    file = gguf.File(matrix)
    sums, counts = (file.decode(f"blk.0.ffn_down.weight.{part}") for part in ("in_sum2", "counts"))
    check(
        sums.shape[-1] == 96 and (sums > 0).all() and counts.ravel().tolist() == [3 * 64.0],
        "imatrix sums and counts",
        (sums.shape, counts),
    )
    check(
        file.keys["general.type"] == "imatrix"
        and file.keys["imatrix.datasets"] == [str(text)]
        and file.keys["imatrix.chunk_count"] == 3
        and file.keys["imatrix.chunk_size"] == 64,
        "imatrix keys",
        file.keys,
    )
    check_run("quantize --imatrix", run("quantize", model, out, "Q4_0", "--imatrix", matrix))
    refuse(
        "a model as imatrix",
        run("quantize", model, out, "Q4_0", "--imatrix", model),
        "no importance matrix",
    )
    bad = folder / "bad.gguf"
    tensors = dict(gguf.File(model).tensors)
    keys = dict(gguf.File(model).keys)
    values = np.frombuffer(tensors["blk.0.ffn_up.weight"][2], "<f4").copy()
    for value, name, pattern in ((np.nan, "Q4_0", "damaged"), (1e6, "F16", "too large for F16")):
        values[7] = value
        tensors["blk.0.ffn_up.weight"] = ("F32", (96, 64), values.tobytes())
        gguf.write(bad, keys, tensors)
        refuse(
            f"quantize {value} to {name}", run("quantize", bad, again, name), "ffn_up.*" + pattern
        )


def mixes(folder):
    """Where the finer formats of a mix go."""
    rng = np.random.default_rng(4)
    model, out = folder / "mixed.gguf", folder / "mix.gguf"
    shapes = {
        "attn_q": (256, 256),
        "attn_v": (64, 256),
        "ffn_down": (256, 256),
        "ffn_down_exps": (2, 256, 256),
    }
    shapes |= {"ffn_gate_inp": (2, 256), "attn_k_b": (4, 256, 96), "attn_kv_a_mqa": (40, 50)}
    tensors = {
        "token_embd.weight": rng.normal(0, 1, (32, 256)),
        "output.weight": rng.normal(0, 1, (32, 256)),
    }
    for i in range(8):
        tensors[f"blk.{i}.attn_norm.weight"] = np.ones(256)
        for name, shape in shapes.items():
            tensors[f"blk.{i}.{name}.weight"] = rng.normal(0, 1, shape)
    gguf.write(model, {"general.architecture": "llama"}, tensors)

    def formats(name, *options):
        done = run("quantize", model, out, name, *options)
        file = gguf.File(out).tensors
        check_run(f"mix {name} {' '.join(options)}", done)
        return lambda tensor: "".join(
            dict.fromkeys(file[f"blk.{i}.{tensor}.weight"][0] + " " for i in range(8))
        )

    found = formats("Q4_K_M")
    check(found("attn_q") == "Q4_K " and found("attn_v") == "Q6_K Q4_K ", "Q4_K_M", found("attn_v"))
    check(
        found("ffn_down_exps") == found("ffn_down") == "Q6_K Q4_K ",
        "Q4_K_M, ffn_down",
        found("ffn_down"),
    )
    check(found("ffn_gate_inp") == found("attn_norm") == "F32 ", "routers and norms stay")
    check(
        found("attn_k_b") == "Q5_0 " and found("attn_kv_a_mqa") == "F16 ", "rows of other lengths"
    )
    check(gguf.File(out).tensors["output.weight"][0] == "Q6_K", "the output matrix")
    found = formats("Q4_K_M", "--pure")
    check(
        found("attn_v") == "Q4_K " and gguf.File(out).tensors["output.weight"][0] == "Q4_K",
        "--pure",
    )
    found = formats("MXFP4")
    check(found("ffn_down_exps") == "MXFP4 " and found("ffn_down") == "Q8_0 ", "MXFP4 for experts")


def perplexity(folder, model, text):
    out = folder / "kl.gguf"
    run("quantize", model, out, "Q4_0")
    plain = run("perplexity", model, text, "--ctx", 64, "--chunks", 4)
    check_run("perplexity", plain)
    value = json.loads(run("perplexity", model, text, "--ctx", 64, "--chunks", 4, "--json").out)
    check(
        value["tokens"] == 4 * 31
        and value["windows"] == 4
        and value["perplexity"] > 1
        and value["standard_error"] > 0
        and f"{value['perplexity']:.4f}" in plain.out.decode(),
        "perplexity --json",
        value,
    )
    same, other = (
        json.loads(
            run("perplexity", m, text, "--ctx", 64, "--chunks", 4, "--json", "--kl", model).out
        )["kl"]
        for m in (model, out)
    )
    check(
        abs(same["mean"]) < 1e-9 and same["same_top"] == 1 and same["p99"] < 1e-9,
        "KL of itself",
        same,
    )
    check(0 < other["mean"] < other["p99"] <= other["max"] and other["same_top"] < 1, "KL", other)
    short = folder / "short.txt"
    short.write_text("short")
    refuse("too little text", run("perplexity", model, short), "less than one window of 512")
    refuse("no text", run("perplexity", model, folder / "none.txt"), "none.txt")
    smaller = oracle_model("llama-heads", folder)
    refuse(
        "KL of different vocabularies",
        run("perplexity", model, text, "--ctx", 64, "--kl", smaller),
        "vocabular",
    )


def embed(folder, model):
    encoder = oracle_model("bert-cls", folder)
    lines = run("embed", encoder, "5 6", "7")
    vectors = [[float(x) for x in line.split()] for line in lines.out.splitlines()]
    check(len(vectors) == 2 and lines.code == 0, "embed two texts", lines)
    check(all(abs(np.linalg.norm(v) - 1) < 1e-5 for v in vectors), "vectors have length 1", lines)
    by_stdin = run("embed", encoder, stdin=b"5 6\n7\n")
    check(by_stdin.out == lines.out, "texts from stdin", by_stdin)
    value = json.loads(run("embed", encoder, "--json", "5 6", "7").out)
    check(np.allclose(value["embeddings"], vectors, atol=1e-6), "embed --json", value)
    raw = run("embed", encoder, "--no-normalize", "5 6")
    check(
        abs(np.linalg.norm([float(x) for x in raw.out.split()]) - 1) > 1e-3, "--no-normalize", raw
    )
    pooled = {p: run("embed", encoder, "--pooling", p, "5 6").out for p in ("mean", "cls", "last")}
    check(len(set(pooled.values())) == 3, "--pooling", pooled)
    refuse("--query without a reranker", run("embed", encoder, "--query", "a", "b"), "no reranker")
    refuse("run with an encoder", run("run", encoder, "-p", "a"), "embedding model")
    refuse("embed without pooling", run("embed", model, "a"), "--pooling")
    check_run("embed with --pooling", run("embed", model, "--pooling", "mean", "a"))


def rerank(folder):
    ranker = oracle_model("qwen3-rerank", folder)
    scores = run("embed", ranker, "--query", "5", "6", "7 8")
    check(scores.code == 0 and len(scores.out.split()) == 2, "scores for a query", scores)
    value = json.loads(run("embed", ranker, "--query", "5", "--json", "6", "7 8").out)
    found = [r["score"] for r in value["results"]]
    check(
        np.allclose(found, [float(x) for x in scores.out.split()], atol=1e-5),
        "scores as JSON",
        value,
    )
    file = gguf.File(ranker)
    keys = {**file.keys, "tokenizer.chat_template.rerank": "5 {document} 8 {query} 9"}
    gguf.write(folder / "ranker.gguf", keys, dict(file.tensors))
    swapped = json.loads(run("embed", folder / "ranker.gguf", "--query", "5", "--json", "6").out)
    again = json.loads(run("embed", folder / "ranker.gguf", "--query", "6", "--json", "5").out)
    found = [v["results"][0]["score"] for v in (value, swapped, again)]
    check(len(set(found)) == 3, "a reranker's own template", found)
    refuse("a reranker without --query", run("embed", ranker, "6"), "--query")


def bench(model):
    done = run("bench", model, "-p", "16,32", "-n", 8, "-b", "1,2", "-c", "0,40", "-r", 2, "--json")
    value = json.loads(done.out)
    check(
        value["read_bandwidth_gb_s"] > 0
        and value["load_s"] >= 0
        and [p["tokens"] for p in value["prefill"]] == [16, 32]
        and [(d["context"], d["batch"]) for d in value["decode"]]
        == [(0, 1), (0, 2), (40, 1), (40, 2)]
        and all(
            p["min"] <= p["tokens_per_s"] <= p["max"] for p in value["prefill"] + value["decode"]
        ),
        "bench --json",
        done,
    )
    file = gguf.File(model)
    weights = sum(len(data) for _, _, data in file.tensors.values())
    one, two, after, _ = (d["bytes_per_token"] for d in value["decode"])
    check(
        weights < one < weights * 1.1 and two < one < after,
        "bench counts the bytes of a token",
        (weights, one, two),
    )
    for d in value["decode"]:
        share = d["bytes_per_token"] * d["tokens_per_s"] / (d["read_gb_s"] * 1e9)
        check(abs(share - d["bandwidth_share"]) < 1e-3 * share, "bench's share", d)
        limit = max(d["bandwidth_share"], d["arithmetic_share"])
        check(
            abs(limit - d["limit_share"]) < 1e-3 * limit
            and abs(d["tokens_per_s"] / d["limit_tokens_per_s"] - limit) < 1e-3 * limit
            and d["bound"] == ("memory" if limit == d["bandwidth_share"] else "arithmetic"),
            "bench's limit is the slower of memory and arithmetic",
            d,
        )
    check_run("bench", run("bench", model, "-p", 8, "-n", 4, "-r", 1), err="^$")
    check("drafts" not in value, "bench measures drafts where asked")
    small = ["bench", model, "-p", 8, "-n", 12, "-r", 2, "--speculate", "ngram"]
    check_run("bench --speculate", run(*small), err="^$")
    drafts = json.loads(run(*small, "--json").out)["drafts"]
    check(
        drafts["tokens"] == 12
        and 0 < drafts["min"] <= drafts["ratio"] <= drafts["max"]
        and drafts["plain_tokens_per_s"] > 0
        and drafts["drafted_tokens"] >= drafts["accepted_tokens"] >= 0,
        "bench --speculate --json",
        drafts,
    )
    refuse(
        "bench, more than memory holds",
        run("bench", model, "-c", 200000000, "-b", 20),
        "context of 40000",
    )


def sweep(folder, model):
    prefix = folder / 'sweep "<&>'
    sizes = ("-p", 8, "-n", 2, "-r", 1)
    done = run("bench", model, "--sweep", "-c", "0,24", "-b", "1,3", *sizes, "-o", prefix, "--json")
    check_run("bench --sweep", done, err="^wrote .*csv and .*svg\n$")
    value = json.loads(done.out)
    points = [(p["context"], p["batch"]) for p in value["decode"]]
    expected = [(0, 1), (0, 3), (24, 1), (24, 3)]
    with open(f"{prefix}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    check(points == expected, "a sweep measures every context with every batch", points)
    check(
        [(r["phase"], int(r["context"]), int(r["batch"])) for r in rows]
        == [(phase, *point) for point in expected for phase in ("prefill", "decode")]
        and all(r["model"] == str(model) and None not in r and None not in r.values() for r in rows)
        and all(
            float(r["min"]) <= float(r["tokens_per_s"]) <= float(r["max"])
            and float(r["limit_tokens_per_s"]) > 0
            and r["bound"] in ("memory", "arithmetic")
            for r in rows
        ),
        "the sweep's table",
        rows,
    )
    picture = ElementTree.parse(f"{prefix}.svg").getroot()
    texts = ["".join(t.itertext()) for t in picture.iter("{http://www.w3.org/2000/svg}text")]
    lines = list(picture.iter("{http://www.w3.org/2000/svg}polyline"))
    check(
        {"prefill, tokens/s", "decode, tokens/s", "context (tokens before)", "24", "3"}
        <= set(texts)
        and len(lines) == 2 * 4 * 2
        and all(
            float(n) >= 0 for line in lines for n in re.findall("[-0-9.]+", line.get("points"))
        ),
        "the sweep's chart",
        texts,
    )
    by_default = run("bench", model, "--sweep", *sizes, "-o", folder / "default", "--json")
    points = [(p["context"], p["batch"]) for p in json.loads(by_default.out)["decode"]]
    check(
        points == [(0, 1 << b) for b in range(6)],
        "contexts that nobody asked for stay within what the model was trained on",
        points,
    )
    absent = folder / "absent"
    refuse(
        "bench --sweep, no such folder",
        run("bench", model, "--sweep", "-o", absent / "sweep"),
        "cannot create .*No such file",
    )
    refuse(
        "bench --sweep, no such model",
        run("bench", absent, "--sweep", *sizes, "-o", folder / "never"),
        "cannot open",
    )
    left = list(folder.glob("never*"))
    check(not left, "a sweep that failed leaves no file", left)


def main():
    with tempfile.TemporaryDirectory(prefix="consort-cli-") as name:
        folder = Path(name)
        model = text_model(folder / "model.gguf")
        text = folder / "text.txt"
        text.write_text("the cat and the dog sat on a mat, and the rain fell on them. " * 12)
        usage()
        documents()
        bad_files(folder, model)
        run_answers(folder, model)
        run_limits(model)
        run_json(model)
        run_drafts(folder, model)
        run_template(folder)
        signals(folder)
        interrupted_quantize(folder)
        terminal(folder)
        show(model)
        logits(folder, model)
        tokenize(model)
        render(folder)
        quantize(folder, model, text)
        mixes(folder)
        perplexity(folder, model, text)
        embed(folder, model)
        rerank(folder)
        bench(model)
        sweep(folder, model)
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
