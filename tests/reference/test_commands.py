#!/usr/bin/env python3
"""The reference data against the program's commands: logits, run, tokenize, render and quantize.

Environment: CONSORT (the program), CONSORT_REFERENCE, CONSORT_ISA (passed on). Arguments choose
among the sections arch, quant, encode, text, tokenizer and template; without any, all run.
"""
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "oracle"))

import gguf
from tap import REFERENCE, Failure, Report, consort

EXACT = 1e-4
# These two were made with a GELU read from a table of 16-bit floats: a right answer is 1.7e-4 and
# 1.8e-4 away (the oracle's own test shows that with such a table it is 1e-5).
ARCH_TOLERANCE = {"grok": 2e-4, "starcoder2": 2e-4}

# Relative L2 error of the logits that the reference program itself reaches, in percent, and the
# factor allowed.
QUANT_PERCENT = {
    "F16": 0.03,
    "BF16": 0.25,
    "Q4_0": 0.96,
    "Q4_1": 0.93,
    "Q5_0": 0.95,
    "Q5_1": 0.96,
    "Q8_0": 0.96,
    "Q2_K": 1.41,
    "Q3_K_M": 1.41,
    "Q4_K_M": 1.39,
    "Q5_K_M": 1.42,
    "Q6_K": 1.41,
    "IQ4_NL": 0.95,
    "IQ4_XS": 1.41,
    "TQ2_0": 1.60,
    "MXFP4_MOE": 0.94,
}
QUANT_FACTOR = 1.05
ENCODE_FACTOR = 1.01
CANNOT_ENCODE = ("TQ2_0",)
SEPARATOR = "\n__ggml_vocab_test__\n"


def distance(found, expected):
    """Relative L2; infinite if the sizes differ."""
    if found.size != expected.size:
        return np.inf
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def floats(path):
    return np.fromfile(path, "<f4")


def ids(path):
    return [int(word) for word in path.read_text().split()]


def run_logits(model, tokens, folder):
    listed, out = folder / "tokens", folder / "out"
    listed.write_text(" ".join(map(str, tokens)) + "\n")
    consort("logits", model, "--tokens", listed, "--out", out)
    return floats(out)


def arch(report, folder):
    for path in sorted(REFERENCE.glob("arch/*.gguf")):
        name, tokens = path.stem, ids(path.with_suffix(".tokens"))
        allowed = ARCH_TOLERANCE.get(name, EXACT)
        embedding = path.with_suffix(".embedding")
        try:
            found = run_logits(path, tokens, folder)
            error = distance(
                found, floats(embedding if embedding.exists() else path.with_suffix(".logits"))
            )
            report.check(
                error < allowed, f"arch {name}", f"relative L2 {error:.2e}, allowed {allowed:g}"
            )
            if embedding.exists():
                continue
            # Fed the expected continuation, every position must choose the next of its tokens.
            greedy = ids(path.with_suffix(".greedy"))
            rows = run_logits(path, tokens + greedy, folder).reshape(len(tokens + greedy), -1)
            chosen = rows.argmax(1).tolist()[len(tokens) - 1 : -1]
            report.check(chosen == greedy, f"arch {name}, greedy", f"{chosen} instead of {greedy}")
        except (Failure, ValueError) as problem:
            report.check(False, f"arch {name}", problem)


def quant(report, folder):
    tokens = ids(REFERENCE / "quant/tokens")
    limits = {name: percent / 100 * QUANT_FACTOR for name, percent in QUANT_PERCENT.items()}
    for name, allowed in {"base-f32": EXACT, **limits}.items():
        try:
            found = run_logits(REFERENCE / f"quant/{name}.gguf", tokens, folder)
            error = distance(found, floats(REFERENCE / f"quant/{name}.logits"))
            detail = f"relative L2 {100 * error:.4f} %, allowed {100 * allowed:.4f} %"
            report.check(error <= allowed, f"quant {name}", detail)
        except Failure as problem:
            report.check(False, f"quant {name}", problem)


def encode(report, folder):
    """The error of encoding is measured on one tensor, in its own units."""
    tensor = "blk.0.ffn_down.weight"
    base_path = REFERENCE / "quant/base-f32.gguf"
    base = gguf.File(base_path).decode(tensor).ravel()
    for name in QUANT_PERCENT:
        if name in CANNOT_ENCODE:
            continue
        form = gguf.File(REFERENCE / f"quant/{name}.gguf").tensors[tensor][0]
        allowed = distance(floats(REFERENCE / f"quant/{name}.ffn_down.f32"), base) * ENCODE_FACTOR
        out = folder / "encoded.gguf"
        try:
            consort("quantize", base_path, out, form)
            encoded = gguf.File(out)
            error = distance(encoded.decode(tensor).ravel(), base)
            got = encoded.tensors[tensor][0]
            detail = f"error {100 * error:.4f} %, allowed {100 * allowed:.4f} %, as {got}"
            report.check(got == form and error <= allowed, f"encode {form}", detail)
        except Failure as problem:
            report.check(False, f"encode {form}", problem)


def text(report, folder):
    expected = (REFERENCE / "text/once-upon-a-time.expected").read_bytes().rstrip(b"\n")
    words = [
        "run",
        REFERENCE / "text/stories260K.gguf",
        "--raw",
        "-p",
        "Once upon a time",
        "-n",
        "120",
        "--temp",
        "0",
    ]
    try:
        found = consort(*words).rstrip(b"\n")
        report.check(found == expected, "text stories260K", found.decode("utf-8", "replace"))
    except Failure as problem:
        report.check(False, "text stories260K", problem)


def tokenizer(report, folder):
    for path in sorted(REFERENCE.glob("tokenizer/*.inp")):
        texts = path.read_bytes().decode().split(SEPARATOR)
        lines = path.with_suffix(".out").read_text().split("\n")
        wrong = []
        try:
            for index, (sample, line) in enumerate(zip(texts, lines[:-1])):
                found = consort(
                    "tokenize", path.with_suffix(".gguf"), "--no-special", stdin=sample.encode()
                ).split()
                if [int(word) for word in found] != [int(word) for word in line.split()]:
                    wrong.append(f"text {index + 1}: {sample[:60]!r}")
            report.check(not wrong and len(lines) > 1, f"tokenizer {path.stem}", "\n".join(wrong))
        except (Failure, ValueError) as problem:
            report.check(False, f"tokenizer {path.stem}", problem)


def render(report, folder, name, case, expected, data):
    title = f"template {name}, {case}"
    given = folder / "case.json"
    ends = {key: data[key] for key in ("bos_token", "eos_token")}
    given.write_text(json.dumps({**data["cases"][case], **ends}))
    try:
        found = consort(
            "render", REFERENCE / f"template/{name}.jinja", "--input", given, "--now", data["now"]
        )
    except Failure as problem:
        # A refusal is exit code 1 and a sentence; anything else is a crash.
        refused = "error" in expected and "exit code 1:" in str(problem)
        report.check(refused, title, problem)
        return
    if "error" in expected:
        report.check(False, title, f"must be refused: {expected['error']}")
    else:
        report.check(found == expected["text"].encode(), title, found.decode("utf-8", "replace"))


def template(report, folder):
    data = json.loads((REFERENCE / "template/expected.json").read_text())
    for name, cases in data["expected"].items():
        for case, expected in cases.items():
            render(report, folder, name, case, expected, data)


SECTIONS = {
    "arch": (arch, "arch"),
    "quant": (quant, "quant"),
    "encode": (encode, "quant"),
    "text": (text, "text"),
    "tokenizer": (tokenizer, "tokenizer"),
    "template": (template, "template"),
}


def main():
    report = Report()
    unknown = set(sys.argv[1:]) - set(SECTIONS)
    if unknown:
        sys.exit(f"no such section: {' '.join(sorted(unknown))}; there are {' '.join(SECTIONS)}")
    for section in sys.argv[1:] or SECTIONS:
        test, needed = SECTIONS[section]
        if not (REFERENCE / needed).is_dir():
            report.skip(f"reference {section}", f"{REFERENCE / needed} is missing")
            continue
        with tempfile.TemporaryDirectory(prefix="consort-reference-") as folder:
            test(report, Path(folder))
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
