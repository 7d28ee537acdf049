"""bench/peers reads what the peers' programs print, adds it to a table, and compares. The programs
here only print what the real ones do."""
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tap  # noqa: E402

SCRIPT = tap.ROOT / "bench/peers"
MODEL = tap.ROOT / "models/demo.gguf"
SPEED = [
    {"build_commit": "abc", "n_prompt": 64, "n_gen": 0, "avg_ts": 1.5},
    {"build_commit": "abc", "n_prompt": 256, "n_gen": 0, "avg_ts": 20.0},
    {"build_commit": "abc", "n_prompt": 512, "n_gen": 0, "avg_ts": 30.0},
    {"build_commit": "abc", "n_prompt": 0, "n_gen": 32, "avg_ts": 4.0},
]
BATCH_JSON = "".join(f'{{"n_kv_max": 1, "pl": {b}, "speed_tg": {b}.5}}\n' for b in (1, 2, 32))
BATCH_TABLE = """|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |
|-------|--------|------|--------|----------|----------|----------|----------|
|    16 |     16 |    1 |     20 |    0.132 |   121.15 |    0.143 |    28.05 |
"""


def fake(folder, name, text, stream=1):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\ncat >&{stream} <<'END'\n{text}\nEND\n")
    (folder / name).chmod(0o755)


def peers(folder, part, *rest):
    command = [sys.executable, SCRIPT, part, MODEL, "--consort", " ".join(tap.CONSORT)]
    command += ["--rounds", "1", "--output", folder / "out.csv", *rest]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def main():
    report = tap.Report()
    with tempfile.TemporaryDirectory(prefix="consort-peers-") as name:
        folder = Path(name)
        llama, ik = folder / "llama", folder / "ik"
        fake(llama, "llama-bench", "loading\n" + json.dumps(SPEED, indent=2))
        fake(ik, "llama-bench", json.dumps(SPEED, indent=2))
        fake(llama, "llama-batched-bench", BATCH_JSON)
        fake(ik, "llama-batched-bench", BATCH_TABLE, 2)
        for part in ("speed", "batch"):
            done = peers(folder, part, "--llama", llama, "--ik", ik)
            report.check(done.returncode == 0, f"{part} is measured", done.stderr)
        with open(folder / "out.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = {(r["program"], r["test"]): float(r["median"]) for r in rows}
        expected = {
            ("llama.cpp", "prefill 256"): 20,
            ("llama.cpp", "prefill 512"): 30,
            ("llama.cpp", "decode 32"): 4,
            ("ik_llama.cpp", "decode 32"): 4,
            ("llama.cpp", "batch 32"): 32.5,
            ("ik_llama.cpp", "batch 1"): 28.05,
        }
        wrong = {key: found.get(key) for key in expected if found.get(key) != expected[key]}
        report.check(not wrong, "what the peers print is understood", wrong)
        ours = {test for program, test in found if program == "consort"}
        wanted = {"prefill 256", "prefill 512", "decode 32", "batch 1", "batch 32"}
        report.check(wanted <= ours, "consort is measured beside them", ours)
        table = subprocess.run(
            [sys.executable, SCRIPT, "table", folder / "out.csv"],
            capture_output=True,
            text=True,
            check=False,
        )
        ratio = found[("consort", "decode 32")] / 4
        row = next((r for r in table.stdout.splitlines() if "decode 32" in r), "")
        report.check(
            f"| 4.0 (4.0) | {ratio:.2f} ({ratio:.2f}) |" in row,
            "the table has the ratios",
            table.stdout,
        )
        broken = peers(folder, "speed", "--llama", folder / "absent")
        report.check(broken.returncode != 0, "a peer that is not there ends it", broken.stdout)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
