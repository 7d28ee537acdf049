#!/usr/bin/env python3
"""Keys over a live server: who is let in, and to what. Keys change while the server runs, which it
learns a moment later; so the tests ask until it has."""
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "oracle"))
import gguf  # noqa: E402
import server  # noqa: E402
import tap  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
QUESTION = [{"role": "user", "content": "Is my data private?"}]
CHAT = "/v1/chat/completions"
TWO_MODELS = (f"demo={server.DEMO}", f"other={server.DEMO}")


class Home:
    """A CONSORT_HOME of its own, and the commands in it."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="consort-keys-")
        self.environment = {**os.environ, "CONSORT_HOME": self.path}
        self.database = Path(self.path) / "consort.db"
        self.secrets, self.servers = [], []

    def run(self, *arguments):
        """(exit code, standard output, standard error)"""
        done = subprocess.run(tap.CONSORT + [*map(str, arguments)], env=self.environment,
                              capture_output=True, timeout=tap.TIMEOUT_S, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def create(self, *arguments, action="create"):
        code, out, err = self.run("key", action, *arguments)
        if code != 0:
            raise tap.Failure(err, code)
        self.secrets.append(out.strip())
        return out.strip()

    def up(self, *arguments, **options):
        self.servers.append(server.Server(*arguments, environment=self.environment, **options))
        return self.servers[-1]

    def execute(self, sql):
        """Changes the file behind the program's back."""
        connection = sqlite3.connect(self.database, timeout=60)
        try:
            connection.execute(sql)
            connection.commit()
        finally:
            connection.close()

    def close(self):
        shutil.rmtree(self.path, ignore_errors=True)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def ask(live, key=None, path=CHAT, **fields):
    body = {"model": "demo", "messages": QUESTION, "temperature": 0, "max_tokens": 2, **fields}
    return live.json("POST", path, body, bearer(key) if key else None)


def until(live, wanted, key):
    """The answer once its status is the wanted one."""
    deadline = time.monotonic() + tap.TIMEOUT_S
    while True:
        status, body = live.json("GET", "/v1/models", headers=bearer(key) if key else None)
        if status == wanted or time.monotonic() > deadline:
            return status, body
        time.sleep(0.05)


def message(body):
    return body["error"]["message"] if isinstance(body["error"], dict) else body["error"]


# ---- Parts -----------------------------------------------------------------------------------------


def check_commands(home):
    key = home.create("ann", "--models", "demo,b", "--expires", "30d")
    check(re.fullmatch(r"ck-[0-9a-f]{64}", key), "a key is 256 bits", key)
    code, out, err = home.run("key", "create", "ann")
    check(code == 1 and "already" in err and out == "", "a name is taken once", err)
    rotated = home.create("ann", action="rotate")
    rows = json.loads(home.run("key", "list", "--json")[1])
    check([r["state"] for r in rows] == ["revoked", "active"] and rotated != key and
          all(r["models"] == ["demo", "b"] and r["expires"] == rows[0]["expires"] for r in rows),
          "rotate keeps what the key may do", rows)
    check("ann" in home.run("key", "list")[1], "key list")
    check(home.run("key", "revoke", "ann")[0] == 0 and
          "no valid key" in home.run("key", "revoke", "ann")[2], "revoke, once")
    for words, wanted in [(("create",), "needs the name"), (("list", "ann"), "takes no name"),
                          (("create", "a b"), "letters"), (("create", "command-line"), "--api-key"),
                          (("create", "x", "--expires", "2020-01-01"), "over"),
                          (("create", "x", "--expires", "2027-02-31"), "neither"),
                          (("create", "x", "--expires", "5"), "neither"),
                          (("rotate", "ann", "--models", "b"), "said with create"),
                          (("drop", "ann"), "none of")]:
        code, out, err = home.run("key", *words)
        check(code != 0 and wanted in err and out == "", "refused: " + " ".join(words), err)
    check(home.database.stat().st_mode & 0o777 == 0o600, "only its owner may read the file")


def check_life(home):
    """Keys that come and go while the server runs; without any, this machine is answered."""
    live = home.up(models=TWO_MODELS)
    check(ask(live)[0] == 200, "without keys this machine is answered")
    ann = home.create("ann")
    status, body = until(live, 401, None)
    check(status == 401 and "needs an API key" in message(body), "the first key closes it", body)
    check(live.request("GET", "/health")[0] == 200, "health is for anyone")
    check(live.request("GET", "/metrics")[0] == 401, "metrics are not")
    check(ask(live, ann)[0] == 200, "with the key")
    check(live.request("GET", "/v1/models", headers={"x-api-key": ann})[0] == 200, "x-api-key")
    host = {"Host": "evil.example", "Origin": "https://evil.example"}
    check(live.request("GET", "/v1/models", headers={**bearer(ann), **host})[0] == 200,
          "whoever has a key may come from anywhere")
    check(live.request("GET", "/v1/models", headers=host)[0] == 401, "whoever has none may not")
    for given in (ann[:-1], ann + "0", "ck-" + "0" * 64, ann.upper(), ""):
        status, body = ask(live, given or " ")
        check(status == 401 and ("not known" in message(body) or not given), f"wrong: {len(given)}", body)
    old, new = ann, home.create("ann", action="rotate")
    status, body = until(live, 401, old)
    check(status == 401 and "replaced" in message(body) and until(live, 200, new)[0] == 200,
          "a key that was replaced", body)
    short = home.create("bob", "--expires", "1h")
    check(until(live, 200, short)[0] == 200, "a key that expires")
    home.execute("UPDATE keys SET hash = x'" + "00" * 32 + "' WHERE name = 'bob'")
    check(until(live, 401, short)[0] == 401, "a key that is not in the file any more")
    for number in (1, 2):
        home.run("key", "revoke", ("ann", "bob")[number - 1])
    status, body = until(live, 401, new)
    check(status == 401 and "revoked" in message(body), "a key that was revoked", body)
    check(ask(live)[0] == 401, "the last key's end opens nothing")
    check(live.stop() == 0, "the server ends with 0", live.log)
    live = home.up()
    check(ask(live)[0] == 401, "nor does another start")
    check(live.stop() == 0, "and it ends with 0", live.log)


def check_expiry(home):
    key = home.create("carl", "--expires", "1h")
    home.execute("UPDATE keys SET expires_s = 1000000000 WHERE name = 'carl'")
    live = home.up()
    for path, where in [(CHAT, ("error", "message")), ("/v1/messages", ("error", "message")),
                        ("/api/chat", ("error",))]:
        status, body = ask(live, key, path)
        for name in where:
            body = body[name]
        check(status == 401 and "2001-09-09" in body, f"an expired key at {path}", body)
    anthropic = ask(live, key, "/v1/messages")[1]
    check(anthropic["error"]["type"] == "authentication_error", "in the API's own form", anthropic)
    check(home.run("key", "create", "carl")[0] == 0, "its name is free again")
    check(live.stop() == 0, "the server ends with 0")


def check_models(home):
    key, free = home.create("dora", "--models", "other"), home.create("erik")
    live = home.up(models=TWO_MODELS)
    names = [m["id"] for m in live.json("GET", "/v1/models", headers=bearer(key))[1]["data"]]
    check(names == ["other"], "the models that a key may use are listed", names)
    tags = live.json("GET", "/api/tags", headers=bearer(key))[1]["models"]
    check([t["name"] for t in tags] == ["other:latest"], "by Ollama too", tags)
    check(len(live.json("GET", "/v1/models", headers=bearer(free))[1]["data"]) == 2, "or all")
    for path in (CHAT, "/v1/messages", "/api/chat", "/api/show", "/tokenize"):
        status, body = ask(live, key, path, content="a")
        check(status == 403 and "may not use 'demo'" in message(body), f"others not: {path}", body)
    check(live.json("GET", "/v1/models/demo", headers=bearer(key))[0] == 403, "nor looked at")
    check(ask(live, key, model="other")[0] == 200, "the model that it may use")
    status, body = ask(live, key, model=None)
    check(status == 200 and body["model"] == "other", "and where none is named", body)
    status, body = ask(live, key, model="none")
    check(status == 404 and "demo" not in message(body), "one that is not there names no others", body)
    metrics = live.request("GET", "/metrics", headers=bearer(key))[2]
    check(b'"other"' in metrics and b'"demo"' not in metrics, "nor do metrics")
    check(live.stop() == 0, "the server ends with 0")


def make_large(path):
    """The demo model with its layers repeated: too large for 24 MiB, where the demo itself fits."""
    demo, copies = gguf.File(server.DEMO), 10
    layers = demo.keys["llama.block_count"]
    tensors = dict(demo.tensors)
    for name, tensor in demo.tensors.items():
        if found := re.match(r"blk\.(\d+)\.(.*)", name):
            for i in range(1, copies):
                tensors[f"blk.{int(found[1]) + i * layers}.{found[2]}"] = tensor
    gguf.write(path, {**demo.keys, "llama.block_count": copies * layers}, tensors)


def check_suggestions(home):
    """What is told of a model that does not fit names only models that the key may use."""
    large = Path(home.path) / "large.gguf"
    make_large(large)
    key, free = home.create("gina", "--models", "large,other"), home.create("hans")
    live = home.up("--memory", "24M", models=(*TWO_MODELS, f"large={large}"))
    for name, secret, named in (("all", free, "demo, other"), ("its own", key, "other")):
        status, body = ask(live, secret, model="large")
        check(status == 503 and "does not fit in memory" in message(body) and
              "may use 24.0 MiB (--memory)" in message(body) and
              message(body).endswith(f"these would fit: {named}"), f"what would fit: {name}", body)
    check(live.stop() == 0, "the server ends with 0")


def check_listening(home):
    try:
        home.up("--listen", "0.0.0.0:0").stop()
        check(False, "other machines need a key")
    except tap.Failure as failure:
        check(failure.code == 1 and "consort key create" in str(failure), "other machines need a key",
              failure)
    key = home.create("fred")
    live = home.up("--listen", "0.0.0.0:0")
    check(ask(live)[0] == 401 and ask(live, key)[0] == 200, "one in the file will do")
    check(live.stop() == 0, "the server ends with 0")
    live = home.up("--api-key", "sesame", "--open")
    check(ask(live)[0] == 401 and ask(live, key)[0] == 200 and ask(live, "sesame")[0] == 200,
          "--api-key is one more, and keys are asked for in spite of --open")
    check(live.stop() == 0 and "sesame" not in live.log, "the server ends with 0")


def check_cors(home):
    page = {"Origin": "https://chat.example"}
    preflight = {**page, "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization,content-type"}
    key = home.create("gina")
    live = home.up()
    status, headers, _ = live.request("OPTIONS", CHAT, headers=preflight)
    check(status == 401 and "Access-Control-Allow-Origin" not in headers, "CORS is off by default",
          str(headers))
    check(live.stop() == 0, "the server ends with 0")
    live = home.up("--cors", "https://chat.example")
    status, headers, body = live.request("OPTIONS", CHAT, headers=preflight)
    check(status == 204 and headers["Access-Control-Allow-Origin"] == page["Origin"] and
          "authorization" in headers["Access-Control-Allow-Headers"] and
          "POST" in headers["Access-Control-Allow-Methods"] and body == b"", "a preflight", str(headers))
    body = {"messages": QUESTION, "max_tokens": 2}
    for stream in (False, True):
        status, headers, _ = live.request("POST", CHAT, {**body, "stream": stream},
                                          {**page, **bearer(key)})
        check(status == 200 and headers["Access-Control-Allow-Origin"] == page["Origin"] and
              headers["Vary"] == "Origin", f"an answer, streamed: {stream}", str(headers))
    status, headers, _ = live.request("POST", CHAT, body, page)
    check(status == 401 and headers["Access-Control-Allow-Origin"] == page["Origin"],
          "the page still needs a key, and can read why", str(headers))
    for origin in ("https://evil.example", "https://chat.example.evil.example", "null"):
        status, headers, _ = live.request("OPTIONS", CHAT, headers={**preflight, "Origin": origin})
        check(status == 401 and "Access-Control-Allow-Origin" not in headers, f"not {origin}",
              str(headers))
    check(live.stop() == 0, "the server ends with 0")
    for origin in ("chat.example", "https://chat.example/page", "https://"):
        code, _, err = home.run("up", server.DEMO, "--cors", origin)
        check(code == 2 and "no origin" in err, f"--cors {origin}", err)


def check_open_cors(home):
    """Without keys, --cors lets no foreign page in."""
    live = home.up("--cors", "*")
    status, _, _ = live.request("GET", "/v1/models", headers={"Origin": "https://evil.example"})
    check(status == 403, "a foreign page without keys", status)
    status, headers, _ = live.request("GET", "/v1/models", headers={"Origin": "http://localhost:3000"})
    check(status == 200 and headers["Access-Control-Allow-Origin"] == "http://localhost:3000",
          "a local page", str(headers))
    check(live.stop() == 0, "the server ends with 0")


def check_file(home):
    """A file that is damaged, locked, replaced or gone."""
    key = home.create("hugo")
    live = home.up()
    lock = sqlite3.connect(home.database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    check(ask(live, key)[0] == 200, "a locked file does not stop the server")
    lock.execute("ROLLBACK")
    lock.close()
    os.replace(home.database, home.path + "/moved.db")
    check(until(live, 401, key)[0] == 401, "one that is gone takes its keys with it")
    key = home.create("hugo")
    check(until(live, 200, key)[0] == 200, "the next one's hold")
    damaged = Path(home.path, "damaged.db")
    damaged.write_bytes(b"no database" * 1000)
    os.replace(damaged, home.database)
    for name in ("consort.db-wal", "consort.db-shm"):
        Path(home.path, name).unlink(missing_ok=True)
    check(live.wait_log("stay as they were.*damaged") and ask(live, key)[0] == 200,
          "a damaged one changes no keys", live.log)
    code, _, err = home.run("key", "list")
    check(code == 1 and "damaged" in err, "key list says so", err)
    try:
        home.up().stop()
        check(False, "a server does not start without knowing its keys")
    except tap.Failure as failure:
        check(failure.code == 1 and "damaged" in str(failure),
              "a server does not start without knowing its keys", failure)
    home.database.unlink()
    ivo = home.create("ivo")
    check(until(live, 200, ivo)[0] == 200 and until(live, 401, key)[0] == 401,
          "a new file takes the place of the old one")
    check(live.stop() == 0, "the server ends with 0", live.log)


def check_limits(home):
    few, tokens, one = (home.create("few", "--requests-per-minute", 2),
                        home.create("tokens", "--tokens-per-minute", 30),
                        home.create("one", "--parallel", 1))
    live = home.up("--preload")
    live.wait_log("opened demo")  # time that passes gives back what was used
    body = {"messages": QUESTION, "max_tokens": 2}
    left = [live.request("POST", CHAT, body, bearer(few))[1]["x-ratelimit-remaining-requests"]
            for _ in range(2)]
    status, headers, data = live.request("POST", CHAT, body, bearer(few))
    check(left == ["1", "0"] and status == 429 and 0 < int(headers["Retry-After"]) <= 30 and
          headers["x-ratelimit-limit-requests"] == "2" and headers["x-ratelimit-reset-requests"] and
          json.loads(data)["error"]["code"] == "rate_limit_exceeded", "requests a minute",
          (left, status, str(headers), data))
    check(live.json("GET", "/v1/models", headers=bearer(few))[0] == 200, "lists are not counted")
    for path, where in (("/v1/messages", "error"), ("/api/chat", None)):
        status, answer = ask(live, few, path)
        check(status == 429 and (where is None or answer[where]["type"] == "rate_limit_error"),
              f"in the API's own form: {path}", answer)
    began = time.monotonic()
    status, answer = ask(live, tokens, max_tokens=60, ignore_eos=True)
    used = answer["usage"]["total_tokens"]
    deadline = time.monotonic() + tap.TIMEOUT_S
    while status == 200 and time.monotonic() < deadline:  # it is charged a moment after its end
        status, headers, _ = live.request("POST", CHAT, body, bearer(tokens))
    passed = time.monotonic() - began
    check(used > 30 and status == 429 and int(headers["Retry-After"]) > (used - 30) * 2 - passed - 5 and
          headers["x-ratelimit-remaining-tokens"] == "0" and
          headers["x-ratelimit-limit-tokens"] == "30", "tokens a minute", (used, status, str(headers)))
    connection = live.connect()
    endless = {"messages": QUESTION, "stream": True, "max_tokens": 400, "ignore_eos": True, "n": 128}
    connection.request("POST", CHAT, json.dumps(endless), bearer(one))
    response = connection.getresponse()
    response.readline()
    status, answer = ask(live, one)
    check(status == 429 and "at once" in message(answer), "requests at once", answer)
    response.close()
    connection.close()  # the server learns of it a moment later
    while status != 200 and time.monotonic() < deadline:
        time.sleep(0.02)
        status, answer = ask(live, one)
    check(status == 200, "its place is free again", answer)
    check(live.stop() == 0, "the server ends with 0", live.log)


def check_usage(home):
    """The sums of the file are those of the answers."""
    ann, bob = home.create("ann"), home.create("bob")
    live = home.up(models=TWO_MODELS)
    sums = {}

    def add(key, model, prompt, cached, answer):
        row = sums.setdefault((key, model), [0, 0, 0, 0])
        for i, number in enumerate((1, prompt, cached, answer)):
            row[i] += number

    for name, key, model, fields in [("ann", ann, "demo", {}), ("ann", ann, "demo", {"n": 3}),
                                     ("ann", ann, "other", {"max_tokens": 7}), ("bob", bob, "demo", {})]:
        usage = ask(live, key, model=model, **fields)[1]["usage"]
        add(name, model, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"],
            usage["completion_tokens"])
    answer = ask(live, bob, "/api/chat", stream=False)[1]
    add("bob", "demo", answer["prompt_eval_count"], 0, answer["eval_count"])
    ask(live, bob, messages=None)  # no request to a model
    ask(live, "ck-wrong")
    check(live.stop() == 0, "the server ends with 0", live.log)
    rows = json.loads(home.run("usage", "--json")[1])
    found = {(r["key"], r["model"]): [r["requests"], r["prompt_tokens"], r["cached_tokens"],
                                      r["answer_tokens"]] for r in rows}
    found[("bob", "demo")][2] = sums[("bob", "demo")][2]  # Ollama does not tell
    check(found == sums, "usage is the sum of the answers'", (found, sums))
    check("ann" in home.run("usage", "--days", "1")[1], "usage as a table")
    events = [(e["event"], e["key"]) for e in json.loads(home.run("audit", "--json")[1])]
    check(events == [("key created", "ann"), ("key created", "bob"), ("server started", ""),
                     ("login failed", ""), ("server stopped", "")], "the audit log", events)
    log = home.run("audit")[1]
    check("127.0.0.1: unknown key" in log and "127.0.0.1:0" in log, "with addresses", log)
    for statement in ("DELETE FROM audit", "UPDATE audit SET event = ''"):
        try:
            home.execute(statement)
            check(False, "the audit log is only added to")
        except sqlite3.IntegrityError:
            check(True, "the audit log is only added to")
    stored = home.database.read_bytes()
    check(b"private" not in stored, "no prompt is in the file")


def check_flood(home):
    """Failed logins fill no disk."""
    home.create("ann")
    live = home.up()
    for _ in range(100):
        live.request("GET", "/v1/models")
    check(live.stop() == 0, "the server ends with 0")
    failed = [e for e in json.loads(home.run("audit", "--json")[1]) if e["event"] == "login failed"]
    check(30 <= len(failed) < 90, "not every failed login is recorded", len(failed))


def check_secrets(home):
    """No key in the file, in what lies beside it, or in a log."""
    stored = b"".join(p.read_bytes() for p in Path(home.path).rglob("*")
                      if p.is_file())
    check(home.secrets and not any(s.encode() in stored or s[3:].encode() in stored or
                                   bytes.fromhex(s[3:]) in stored for s in home.secrets),
          "no key is in the file")
    logs = "".join(live.log for live in home.servers)
    check(not any(s[3:] in logs for s in home.secrets), "or in a log", logs)


def main():
    for part in (check_commands, check_life, check_expiry, check_models, check_suggestions,
                 check_listening, check_cors, check_open_cors, check_file, check_limits,
                 check_usage, check_flood):
        home = Home()
        try:
            part(home)
            if home.secrets:
                check_secrets(home)
        finally:
            home.close()
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
