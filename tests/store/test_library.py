#!/usr/bin/env python3
"""Ollama's calls that change the store: pull, copy, create, delete. Prints TAP."""
import json
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import mirror as mirrors  # noqa: E402
from test_store import DEMO, gguf, Home, ids, report, server, tap  # noqa: E402

check = report.check
MODEL = DEMO.read_bytes()
DIGEST = mirrors.sha256(MODEL)


def lines(running, path, body, method="POST"):
    status, headers, data = running.request(method, path, body)
    return status, headers, [json.loads(line) for line in data.decode().splitlines()]


def pulls(home, mirror, running):
    path = mirror.add_registry("demo", "latest", MODEL, system="Be brief.", params={"num_predict": 3})
    status, headers, said = lines(running, "/api/pull", {"model": "demo"})
    statuses = [line["status"] for line in said]
    check(status == 200 and headers["Content-Type"] == "application/x-ndjson"
          and statuses[0] == "pulling manifest" and statuses[-1] == "success"
          and f"pulling {DIGEST[:12]}" in statuses, "/api/pull streams its progress", said)
    check(any(line.get("completed") == line.get("total") == len(MODEL)
              and line.get("digest") == f"sha256:{DIGEST}" for line in said), "in bytes", said)
    check(ids(running) == ["demo"], "the model is there")
    check(lines(running, "/api/pull", {"name": "demo", "stream": False})[2] == [{"status": "success"}],
          "without a stream")
    status, _, said = lines(running, "/api/pull", {"model": "nosuch"})
    check(status == 200 and "404" in said[-1]["error"], "an error in the stream", said)
    status, _, said = lines(running, "/api/pull", {"model": "nosuch", "stream": False})
    check(status == 404 and "404" in said[0]["error"], "and without one", said)
    for body in ({}, {"model": ""}, {"model": "../x"}, {"model": str(DEMO)}, {"model": "file:///x"},
                 {"model": mirror.url + "/x.gguf"}, {"model": 1}):
        status, _, said = lines(running, "/api/pull", {**body, "stream": False})
        check(status == 400 and said[0]["error"], f"refused: {body}", said)
    check(running.request("POST", "/api/pull", b"{")[0] == 400, "refused: broken JSON")
    mirror.add_registry("slow", "latest", MODEL + b"x")
    path = f"/v2/library/slow/blobs/sha256:{mirrors.sha256(MODEL + b'x')}"
    mirror.troubles[path] = [("hold", 1000000)]
    connection = running.connect()
    connection.request("POST", "/api/pull", json.dumps({"model": "slow"}))
    mirror.held.wait(tap.TIMEOUT_S)
    check(running.json("GET", "/health")[0] == 200, "the server answers while it pulls")
    connection.close()
    check(running.wait_log("left before its answer"), "who leaves ends the pull", running.log)
    mirror.release()


def answers(running, model, **more):
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "temperature": 0, **more}
    return running.json("POST", "/v1/chat/completions", body)[1]


def manifests(running):
    answer = answers(running, "demo")
    direct = answers(running, "plain", max_tokens=3)
    check(answer["usage"]["completion_tokens"] == 3, "the parameters of a name hold", answer)
    check(answer["usage"]["prompt_tokens"] > direct["usage"]["prompt_tokens"],
          "and what it says as the system", (answer, direct))
    check(answers(running, "demo", max_tokens=2)["usage"]["completion_tokens"] == 2,
          "but the client's go first")
    own = [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]
    check(answers(running, "demo", messages=own)["usage"]["prompt_tokens"]
          == answers(running, "plain", messages=own, max_tokens=1)["usage"]["prompt_tokens"],
          "also its system text")
    said = running.json("POST", "/api/show", {"model": "demo"})[1]
    check(said["system"] == "Be brief." and "num_predict" in said["parameters"]
          and "FROM" in said["modelfile"], "/api/show tells them", said)


def runs(home, running):
    """consort run takes from a name what the server takes."""
    body = {"model": "run", "from": "plain", "system": "Arr.", "messages": [
        {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}],
            "parameters": {"num_predict": 9, "temperature": 0, "stop": ["zzz"]}}
    lines(running, "/api/create", body)
    said = json.loads(home.run("run", "run", "-p", "What is consort?", "--json").out)
    answer = answers(running, "run", messages=[{"role": "user", "content": "What is consort?"}])
    check(said["prompt_tokens"] == answer["usage"]["prompt_tokens"] and said["answer_tokens"] == 9 and
          said["text"] == answer["choices"][0]["message"]["content"], "consort run NAME", (said, answer))
    said = json.loads(home.run("run", "run", "-p", "hi", "-n", 2, "--system", "", "--json").out)
    check(said["answer_tokens"] == 2, "the command line goes first", said)
    word = answer["choices"][0]["message"]["content"].split()[2]
    lines(running, "/api/create", {**body, "parameters": {"temperature": 0, "stop": [word, "zzz"]}})
    said = home.run("run", "run", "-p", "What is consort?").out
    check(answer["choices"][0]["message"]["content"].startswith(said.strip()) and word not in said
          and said.strip(), "stop texts", said)


TURN = ("{{ if .System }}<|y_start|>system\n{{ .System }}<|y_end|>\n{{ end }}{{ if .Prompt }}"
        "<|y_start|>user\n{{ .Prompt }}<|y_end|>\n{{ end }}<|y_start|>assistant\n{{ .Response }}<|y_end|>\n")


def templates(home, mirror, running):
    """Go templates: those of a Modelfile are used, those of a registry where the file has none."""
    question = [{"role": "user", "content": "hi"}]
    own = "<|y_start|>user\nhi<|y_end|>\n<|y_start|>assistant\n"

    def prompt(model):
        status, body = running.json("POST", "/apply-template", {"model": model, "messages": question})
        return body["prompt"] if status == 200 else (status, body)

    status, _, said = lines(running, "/api/create", {"model": "turns", "from": "plain", "template": TURN,
                                                     "stream": False})
    check(status == 200 and prompt("turns") == own != prompt("plain"), "a template of its own", prompt("turns"))
    lines(running, "/api/create", {"model": "filed", "modelfile": f'FROM plain\nTEMPLATE """{TURN}"""\n'})
    check(prompt("filed") == own, "from a Modelfile", prompt("filed"))
    lines(running, "/api/create", {"model": "again", "from": "turns"})
    check(prompt("again") == own, "and of what is made from it", prompt("again"))
    lines(running, "/api/create", {"model": "bared", "from": "turns", "template": ""})
    check(prompt("bared") == own, "an empty one says nothing", prompt("bared"))
    status, shown = running.json("POST", "/api/show", {"model": "again"})
    check(shown["template"] == TURN and TURN in shown["modelfile"], "/api/show tells it", shown)
    for asked in ({"template": "{{ .Nothing }}"}, {"modelfile": 'FROM plain\nTEMPLATE "{{ .Nothing }}"'}):
        status, _, said = lines(running, "/api/create", {"model": "x", "from": "plain", **asked, "stream": False})
        check(status == 400 and "'.Nothing' is not known" in said[0]["error"] and "--template FILE" in said[0]["error"],
              "one that is not known is refused", (status, said))
    mirror.add_registry("known", "latest", MODEL, template=TURN)
    lines(running, "/api/pull", {"model": "known"})
    check(prompt("known") == prompt("plain"), "the file's own stays", prompt("known"))
    whole = gguf.File(DEMO)
    keys = {key: value for key, value in whole.keys.items() if key != "tokenizer.chat_template"}
    gguf.write(home.path / "bare.gguf", keys, dict(whole.tensors))
    bare = (home.path / "bare.gguf").read_bytes()
    mirror.add_registry("bare", "latest", bare, template=TURN.replace("y_", "x_"))
    lines(running, "/api/pull", {"model": "bare"})
    check(prompt("bare") == own.replace("y_", "x_"), "a registry's, where the file has none", prompt("bare"))
    mirror.add_registry("odd", "latest", bare, template="{{ .Nothing }}")
    lines(running, "/api/pull", {"model": "odd"})
    status, body = prompt("odd")
    check(status == 400 and "'.Nothing' is not known" in body["error"]["message"], "and refused where it is odd", body)
    run = home.run("run", "odd", "-p", "hi")
    check(run.code == 1 and "--template FILE" in run.err, "by consort run too", run)


def creates(home, running):
    body = {"model": "pirate", "from": "plain", "system": "Arr.", "parameters": {"num_predict": 4}}
    status, _, said = lines(running, "/api/create", body)
    check(status == 200 and said[-1] == {"status": "success"}, "/api/create", said)
    check(answers(running, "pirate")["usage"]["completion_tokens"] == 4, "its parameters hold")
    modelfile = ('# mine\nFROM plain\nPARAMETER temperature 0.5\nPARAMETER num_predict 5\n'
                 'PARAMETER stop "<a>"\nPARAMETER stop <b>\nSYSTEM """You\nare."""\n'
                 'MESSAGE user Hello\nMESSAGE assistant "Hi you"\nLICENSE free\n')
    status, _, said = lines(running, "/api/create", {"name": "filed", "modelfile": modelfile})
    check(status == 200 and said[-1] == {"status": "success"}, "from a Modelfile", said)
    manifest = json.loads((home.models / "names" / "filed@latest.json").read_text())
    check(manifest["system"] == "You\nare." and manifest["license"] == "free"
          and manifest["parameters"] == {"temperature": 0.5, "num_predict": 5, "stop": ["<a>", "<b>"]}
          and [m["content"] for m in manifest["messages"]] == ["Hello", "Hi you"], "all of it", manifest)
    check(answers(running, "filed")["usage"]["completion_tokens"] <= 5, "it answers")
    check(len(home.blobs()) == 1, "no file was copied", home.blobs())
    runs(home, running)
    for what, code, body in (
            ("nothing to make it from", 400, {"model": "x"}),
            ("an unknown one", 404, {"model": "x", "from": "nosuch"}),
            ("a bad name", 400, {"model": "../x", "from": "plain"}),
            ("an adapter", 400, {"model": "x", "modelfile": "FROM plain\nADAPTER ./x"}),
            ("an unknown instruction", 400, {"model": "x", "modelfile": "FROM plain\nRUN rm"}),
            ("open quotes", 400, {"model": "x", "modelfile": 'FROM plain\nSYSTEM """x'}),
            ("a path", 400, {"model": "x", "from": "/etc/passwd"}),
            ("quantizing", 400, {"model": "x", "from": "plain", "quantize": "q4_K_M"}),
            ("parameters that are none", 400, {"model": "x", "from": "plain", "parameters": 1})):
        status, _, said = lines(running, "/api/create", {**body, "stream": False})
        check(status == code and said[0]["error"], f"refused: {what}", (status, said))


def names(home, running):
    check(running.request("POST", "/api/copy", {"source": "plain", "destination": "b"})[0] == 200
          and "b" in ids(running), "/api/copy")
    check(running.request("POST", "/api/copy", {"source": "nosuch", "destination": "b"})[0] == 404,
          "of nothing")
    check(running.request("POST", "/api/copy", {"source": "plain"})[0] == 400, "to nowhere")
    check(running.request("DELETE", "/api/delete", {"model": "b"})[0] == 200
          and "b" not in ids(running), "/api/delete")
    check(running.request("DELETE", "/api/delete", {"name": "b"})[0] == 404, "of nothing")
    for name in list(ids(running)):
        running.request("DELETE", "/api/delete", {"model": name})
    check(ids(running) == [] and home.blobs() == [], "nothing is left", home.blobs())


def shutting_down(mirror, home):
    mirror.reset()
    path = mirror.add_registry("last", "latest", MODEL)
    mirror.troubles[path] = [("hold", 1000000)]
    settings = home.path / "settings.yaml"
    settings.write_text(f"mirror: {mirror.url}\n")
    running = server.Server("--config", settings, models=(),
                            environment=home.environment(CONSORT_MIRROR="http://127.0.0.1:1"))
    connection = running.connect()
    connection.request("POST", "/api/pull", json.dumps({"model": "last"}))
    check(mirror.held.wait(tap.TIMEOUT_S), "the settings' mirror is asked before the environment's", mirror.requests)
    check(running.stop(signal.SIGTERM) == 0, "a server that is told to end leaves its pulls", running.log)
    connection.close()
    mirror.release()
    check(home.names() == [], "and nothing half there has a name")


def main():
    with tempfile.TemporaryDirectory() as folder:
        mirror, home = mirrors.Mirror(), Home(folder)
        running = server.Server(models=(), environment=home.environment(CONSORT_MIRROR=mirror.url))
        pulls(home, mirror, running)
        home.run("pull", DEMO, "--as", "plain")
        manifests(running)
        creates(home, running)
        templates(home, mirror, running)
        names(home, running)
        check(running.stop() == 0, "the server ends well", running.log)
        shutting_down(mirror, home)
        mirror.close()
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
