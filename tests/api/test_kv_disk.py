#!/usr/bin/env python3
"""`consort up --kv-disk`: a prompt that was seen before a restart is not computed again, and its answer
is the same. What lies on disk is its owner's alone, bounded, and not trusted."""
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import server  # noqa: E402
import tap  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
PROMPT = "consort is one program that turns the desktop machines of a room into one private server. " * 20
PAGE = 128


def start(home, *arguments, **more):
    return server.Server(*arguments, environment={"CONSORT_HOME": home}, **more)


def ask(live, prompt=PROMPT, model="demo"):
    """(text, tokens of the prompt, those that were known)"""
    body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0}
    status, answer = live.json("POST", "/v1/completions", body)
    if status != 200:
        raise tap.Failure(f"{answer}\n{live.log}")
    usage = answer["usage"]
    return (answer["choices"][0]["text"], usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"])


def once(home, *arguments, **more):
    """The answer of a server that is started for it and then stopped."""
    live = start(home, *arguments, **more)
    answer = ask(live)
    code = live.stop()
    check(code == 0, "the server ends with 0", live.log)
    return answer


def pages(home):
    return [path for path in Path(home, "kv").iterdir() if len(path.name) == 64]


def check_restart(home):
    live = start(home, "--kv-disk", "1G")
    first = ask(live)
    second = start(home, "--kv-disk", "1G")
    check(second.wait_log("keeps no KV caches on disk: another"), "one server has the folder")
    check(ask(second)[0] == first[0] and second.stop() == 0, "another one works without", second.log)
    check(first[1] > 2 * PAGE and first[2] == 0, "a long prompt is computed", first)
    check(live.stop() == 0, "the server ends with 0", live.log)
    found = pages(home)
    check(len(found) in (first[1] // PAGE, (first[1] + 16) // PAGE), "its pages are on disk", (first, found))
    modes = {path.stat().st_mode & 0o777 for path in found}
    check(modes == {0o600} and Path(home, "kv").stat().st_mode & 0o777 == 0o700, "for the owner alone", modes)
    live = start(home, "--kv-disk", "1G")
    again = ask(live)
    check(again[0] == first[0] and again[2] == (first[1] - 1) // PAGE * PAGE,
          "after a restart they are known", (first, again))
    other = ask(live, PROMPT[:-40])
    check(other[2] >= 2 * PAGE, "for other prompts that begin so as well", other)
    check(ask(live)[0] == first[0] and live.stop() == 0, "it ends with 0", live.log)
    check(once(home, "--kv-disk", "1G", "--kv-type", "q8_0")[2] == 0, "not for another format of the cache")
    check(once(home)[2] == 0, "nor without --kv-disk")
    return first


def check_damage(home, first):
    notes = Path(home, "kv/notes.txt")
    notes.write_text("mine")
    for number, path in enumerate(pages(home)):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data if number % 2 else data[:-1])
    damaged = once(home, "--kv-disk", "1G")
    check(damaged[0] == first[0] and damaged[2] == 0, "what is damaged is computed again", damaged)
    check(notes.exists(), "what is foreign stays")
    again = once(home, "--kv-disk", "1G")
    check(again[0] == first[0] and again[2] > 0, "and is good again after the next start", again)


def check_file(home):
    """The same file under another name in another place is another file, as it is in no store."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy.gguf")
        copy.write_bytes(server.DEMO.read_bytes())
        check(once(home, "--kv-disk", "1G", models=(f"demo={copy}",))[2] == 0, "not for another file")


def check_bounds(home):
    size = max(path.stat().st_size for path in pages(home))
    live = start(home, "--kv-disk", f"{4 * size // 1024}K")
    for i in range(4):
        ask(live, f"{i} " + PROMPT)
    check(live.stop() == 0, "the server ends with 0", live.log)
    taken = sum(path.stat().st_size for path in pages(home))
    check(0 < taken <= 4 * size, "never more than was allowed", (taken, size))
    live = start(home, "--kv-disk", "1K")
    check(ask(live)[2] == 0 and "less than one page" in live.log and live.stop() == 0,
          "what is too little is said", live.log)
    for value in ("0", "80%", "x"):
        try:
            start(home, "--kv-disk", value).stop()
            check(False, f"--kv-disk {value}")
        except tap.Failure as failure:
            check(failure.code == 2 and "16G" in str(failure), f"--kv-disk {value}", failure)


def check_kinds(home):
    """Sliding windows, and keys and values that are compressed."""
    try:
        import numpy  # noqa: F401
    except ImportError:
        REPORT.skip("windows and latent attention", "needs numpy")
        return
    prompt = [5 + i * i % 37 for i in range(3 * PAGE)]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("gemma3", "deepseek2"):
            model, answers = server.made_up(name, Path(folder)), []
            for _ in range(2):
                live = start(home, "--kv-disk", "1G", models=(f"made={model}",))
                answers.append(ask(live, prompt, "made"))
                check(live.stop() == 0, "the server ends with 0", live.log)
            check(answers[0][0] == answers[1][0] and answers[0][2] == 0 and answers[1][2] == 2 * PAGE, name,
                  answers)


def main():
    with tempfile.TemporaryDirectory() as home:
        first = check_restart(home)
        check_damage(home, first)
        check_file(home)
        check_bounds(home)
        check_kinds(home)
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
