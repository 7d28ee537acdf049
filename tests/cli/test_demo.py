"""The demo model that comes with the source answers README questions, in whole sentences."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tap  # noqa: E402

MODEL = tap.ROOT / "models/demo.gguf"
LIMIT_BYTES = 8 << 20

# A question, and what a right answer must contain.
QUESTIONS = [
    ("What is consort?", ["open-source C program", "one private server"]),
    ("How do I install consort?", ["./start"]),
    ("How do I run the tests?", ["./check"]),
    ("Which commands are there?", ["quantize", "perplexity", "help"]),
    ("How do I chat with a model?", ["consort run MODEL"]),
    ("How do I stop an answer?", ["Ctrl-C"]),
    ("How do I quantize a model?", ["consort quantize IN OUT FORMAT"]),
    ("Which models run?", ["Llama", "Qwen", "GGUF"]),
    ("Is my data private?", ["leaves the building"]),
    ("Does it use the GPU?", ["Not yet", "CPU"]),
    ("How do I add a machine?", ["consort token", "consort join"]),
    ("What is GGUF?", ["file format"]),
    ("Which licence does consort have?", ["MIT"]),
    ("Who are you?", ["demo model"]),
    ("What is the capital of France?", ["do not know"]),
]


def main():
    report = tap.Report()
    size = MODEL.stat().st_size
    report.check(size <= LIMIT_BYTES, "the file is small", f"{size} bytes")
    for question, wanted in QUESTIONS:
        try:
            answer = tap.consort("run", MODEL, "-p", question, "--temp", "0").decode("utf-8").strip()
        except tap.Failure as failure:
            report.check(False, question, failure)
            continue
        missing = [text for text in wanted if text not in answer]
        whole = answer.endswith((".", "!", "?"))
        report.check(not missing and whole, question, f"{answer}\nmissing: {missing}")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
