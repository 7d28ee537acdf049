#!/usr/bin/env python3
"""How the page and the state of the server are served, with and without a key."""
import base64
import gzip
import hashlib
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent / "api"))
import server  # noqa: E402
import tap  # noqa: E402

PAGE = (tap.ROOT / "web/dist/index.html").read_bytes()


def sha256(text):
    return "'sha256-" + base64.b64encode(hashlib.sha256(text).digest()).decode() + "'"


def check_page(report, live):
    status, headers, data = live.request("GET", "/")
    report.check(status == 200 and data == PAGE, "GET / is the page")
    report.check(headers["Content-Type"] == "text/html; charset=utf-8", "its type", headers)
    policy = headers["Content-Security-Policy"]
    script = re.search(rb"<script>(.*?)</script>", data, re.DOTALL).group(1)
    style = re.search(rb"<style>(.*?)</style>", data, re.DOTALL).group(1)
    report.check(f"script-src {sha256(script)};" in policy, "the policy names the script", policy)
    report.check(f"style-src {sha256(style)};" in policy, "the policy names the style", policy)
    report.check("default-src 'none'" in policy and "frame-ancestors 'none'" in policy and
                 "unsafe" not in policy, "the policy lets nothing else in", policy)
    report.check(headers["X-Content-Type-Options"] == "nosniff" and
                 headers["Referrer-Policy"] == "no-referrer", "the other headers of safety", headers)
    report.check(live.request("GET", "/index.html")[2] == PAGE, "/index.html is the same")
    status, head, data = live.request("HEAD", "/")
    report.check(status == 200 and data == b"" and head["Content-Length"] == str(len(PAGE)), "HEAD", head)
    etag = headers["ETag"]
    for known, expected in ((etag, 304), (f'"x", {etag}', 304), ('W/"x"', 200)):
        status, head, data = live.request("GET", "/", headers={"If-None-Match": known})
        report.check(status == expected and (data == b"") == (expected == 304) and head["ETag"] == etag,
                     f"{expected} where the client has {known[:5]}…", (status, head))
    status, headers, data = live.request("GET", "/", headers={"Accept-Encoding": "gzip, br"})
    report.check(headers["Content-Encoding"] == "gzip" and gzip.decompress(data) == PAGE,
                 "compressed for who can read it", headers)
    status, headers, data = live.request("GET", "/", headers={"Accept-Encoding": "gzip;q=0"})
    report.check("Content-Encoding" not in headers and data == PAGE, "plain for who cannot", headers)
    report.check(live.request("POST", "/", {})[0] == 405, "POST / is refused")


def check_state(report, live):
    status, state = live.json("GET", "/consort/state")
    closed = state["models"][0]
    report.check(status == 200 and closed["state"] == "closed" and closed["name"] == "demo" and
                 closed["file_bytes"] == server.DEMO.stat().st_size, "the state of a closed model", state)
    live.json("POST", "/v1/chat/completions",
              {"messages": [{"role": "user", "content": "a secret word"}], "max_tokens": 3})
    status, headers, data = live.request("GET", "/consort/state")
    _, state = live.json("GET", "/consort/state")
    model = state["models"][0]
    report.check(model["state"] == "open" and model["finished"] == 1 and model["output_tokens"] == 3 and
                 model["context"] == 512 and model["kv_pages"] > 0 and model["prompt_tokens"] > 0,
                 "the state of an open model", state)
    report.check(b"secret" not in data, "no text of a prompt")
    memory = state["memory"]
    report.check(memory["total_bytes"] > memory["free_bytes"] > 0 and
                 memory["limit_bytes"] > memory["used_bytes"] == model["memory_bytes"] > 0 and
                 state["uptime_ms"] > 0 and state["connections"] > 0, "the state of the machine", state)


def check_key(report, live):
    report.check(live.request("GET", "/")[0] == 200, "the page needs no key")
    report.check(live.request("GET", "/consort/state")[0] == 401, "the state needs a key")
    status = live.request("GET", "/consort/state", headers={"Authorization": "Bearer open sesame"})[0]
    report.check(status == 200, "the state with the key")
    report.check(live.request("GET", "/consort/cluster")[0] == 401, "the cluster needs a key")
    status, body = live.json("GET", "/consort/cluster", headers={"Authorization": "Bearer open sesame"})
    report.check(status == 404 and body["error"]["code"] == "no_cluster",
                 "with the key it tells that there is none", body)


def check_open(report, live):
    """On the network without keys the page still works, and pages of others do not."""
    cases = [("192.168.1.5:4000", "http://192.168.1.5:4000", 200), ("studio.local", "http://studio.local", 200),
             ("studio:4000", "http://studio:4000", 200), ("[fd00::1]:4000", "http://[fd00::1]:4000", 200),
             ("192.168.1.5:4000", "http://192.168.1.6:4000", 403), ("studio:4000", "http://studio", 403),
             ("evil.example", "http://evil.example", 403), ("192.168.1.5:4000", "null", 403)]
    for host, origin, expected in cases:
        status = live.request("GET", "/consort/state", headers={"Host": host, "Origin": origin})[0]
        report.check(status == expected, f"--open: a page of {origin} at {host}: {expected}", status)
        status = live.request("GET", "/consort/cluster", headers={"Host": host, "Origin": origin})[0]
        report.check((status == 403) == (expected == 403), f"and of the cluster: {origin} at {host}", status)


def main():
    report = tap.Report()
    live = server.Server()
    check_page(report, live)
    check_state(report, live)
    live.stop()
    live = server.Server("--api-key", "open sesame")
    check_key(report, live)
    live.stop()
    live = server.Server("--open")
    check_open(report, live)
    live.stop()
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
