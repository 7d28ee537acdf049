#!/usr/bin/env python3
"""Every architecture and every block format, against the oracle in this folder.

The oracle is itself compared with the reference data where these exist. Environment: CONSORT (the
program), CONSORT_REFERENCE, CONSORT_ISA (passed on). Arguments name cases; without any, all run.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import formats
import gguf
import make_models
import models
from tap import REFERENCE, Failure, Report, consort

EXACT = 1e-4
# Products with quantised matrices round the activations too; this is what that may cost.
ROUNDED = {"F32": EXACT, "F16": 0.002, "BF16": 0.008}
ROUNDED_BLOCKS = 0.025

# These two references may have been made with a GELU that reads its result from a table of 16-bit
# floats, which is 1.7e-4 and 1.8e-4 away from the exact one; they must be right to EXACT with either.
TABLE_GELU = ("grok", "starcoder2")


def distance(found, expected):
    """Relative L2; infinite if the shapes differ."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.size != expected.size:
        return np.inf
    return np.linalg.norm(found.ravel() - expected.ravel()) / np.linalg.norm(expected)


def gelu_of_table(x):
    y = EXACT_GELU(x.astype(np.float16).astype(np.float64)).astype(np.float16).astype(np.float64)
    return np.where(np.abs(x) >= 10, np.maximum(x, 0), y)


EXACT_GELU = models.gelu


def read_tokens(path):
    return [int(word) for word in path.read_text().split()]


def compute_reference(path, tokens, greedy, expected):
    """The relative error of the oracle, and the tokens it finds after the last of tokens."""
    found = models.forward(models.Model(path), tokens + greedy)
    next_tokens = found[len(tokens) - 1 : -1].argmax(1).tolist() if greedy else []
    return distance(found[: len(tokens)] if greedy else found, expected), next_tokens


def oracle_reference(report, path):
    """The oracle computes what the reference says, also which tokens come next."""
    tokens = read_tokens(path.with_suffix(".tokens"))
    if path.with_suffix(".embedding").exists():
        expected, greedy = np.fromfile(path.with_suffix(".embedding"), "<f4"), []
    else:
        expected = np.fromfile(path.with_suffix(".logits"), "<f4")
        greedy = read_tokens(path.with_suffix(".greedy"))
    error, next_tokens = compute_reference(path, tokens, greedy, expected)
    if error >= EXACT and path.stem in TABLE_GELU:
        models.gelu = gelu_of_table
        try:
            error, next_tokens = compute_reference(path, tokens, greedy, expected)
        finally:
            models.gelu = EXACT_GELU
    name = f"oracle: reference arch/{path.stem}"
    report.check(error < EXACT and next_tokens == greedy, name, f"relative L2 {error:.2e}")


def oracle_format(report, path):
    name = f"oracle: reference quant/{path.name}"
    source = gguf.File(path.with_name(path.name.replace(".ffn_down.f32", ".gguf")))
    found = source.decode("blk.0.ffn_down.weight")
    report.check(found.tobytes() == path.read_bytes(), name)


def run_logits(model, tokens, folder):
    listed, out = Path(folder) / "tokens", Path(folder) / "logits"
    listed.write_text(" ".join(map(str, tokens)) + "\n")
    consort("logits", model, "--tokens", listed, "--out", out)
    return np.fromfile(out, "<f4")


def tolerance(case):
    forms = {case.format, case.expert_format or case.format}
    return max(ROUNDED.get(form, ROUNDED_BLOCKS) for form in forms)


def compare(report, case, folder):
    """All tokens as one batch, and for block formats one token by itself, which other kernels
    compute."""
    path, tokens = make_models.make(case, folder)
    expected = models.forward(models.Model(path), tokens)
    allowed = tolerance(case)
    try:
        found = run_logits(path, tokens, folder)
        error = distance(found, expected)
        ok, detail = error < allowed, f"relative L2 {error:.2e}, allowed {allowed:g}"
        if ok and allowed == EXACT and "pooling_type" not in case.keys:
            best = found.reshape(expected.shape).argmax(1)
            lost = (expected.max(1) - np.take_along_axis(expected, best[:, None], 1)[:, 0]).max()
            if lost > 2 * EXACT * np.abs(expected).max():
                ok, detail = False, f"the likeliest token differs by {lost:.2e}"
        report.check(ok, f"model: {case.name}", detail)
        if allowed != EXACT:
            error = distance(run_logits(path, tokens[:1], folder), expected[0])
            report.check(
                error < 2 * allowed, f"model: {case.name}, one token", f"relative L2 {error:.2e}"
            )
    except (Failure, ValueError) as problem:
        report.check(False, f"model: {case.name}", problem)
    path.unlink()


def decoding(report, case, folder):
    """Turned into F32 by the program, every value is the oracle's to the bit."""
    name = f"decode: {case.format}"
    path, _ = make_models.make(case, folder)
    out = Path(folder) / "decoded.gguf"
    try:
        consort("quantize", path, out, "F32", "--requantize")
        source, decoded = gguf.File(path), gguf.File(out)
        wrong = [
            t
            for t in source.tensors
            if decoded.tensors[t][0] != "F32" or source.decode(t).tobytes() != decoded.tensors[t][2]
        ]
        report.check(not wrong, name, "differs: " + " ".join(wrong))
    except Failure as problem:
        report.check(False, name, problem)
    path.unlink()
    out.unlink(missing_ok=True)


def main():
    report = Report()
    wanted = sys.argv[1:]
    references = [
        (oracle_reference, sorted(REFERENCE.glob("arch/*.gguf")), "arch"),
        (oracle_format, sorted(REFERENCE.glob("quant/*.ffn_down.f32")), "quant"),
    ]
    for test, paths, kind in references:
        if wanted:
            continue
        if not paths:
            report.skip(f"oracle: reference {kind}", f"{REFERENCE / kind} is missing")
        for path in paths:
            test(report, path)
    with tempfile.TemporaryDirectory(prefix="consort-oracle-") as folder:
        for case in make_models.CASES:
            if wanted and case.name not in wanted:
                continue
            compare(report, case, folder)
            if case.name.startswith("format-"):
                decoding(report, case, folder)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
