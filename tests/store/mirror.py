"""A web server with models in the layouts of Ollama's registry and of Hugging Face, which breaks as
told."""
import hashlib
import http.server
import json
import threading


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Mirror:
    """files: path -> bytes. troubles: path -> a list with one entry for each request to come:
    None (works), ("status", N), ("cut", bytes), ("redirect", URL), ("hold", bytes): stops after so many
    until release() is called, ("whole",): knows no ranges, ("headers", {}): more of them."""

    def __init__(self, host="127.0.0.1"):
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                mirror.answer(self)

            def log_message(self, *arguments):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):
                pass  # clients that leave are what is tested here

        self.files, self.troubles, self.requests = {}, {}, []
        self.etags = {}
        self.sent_bytes = 0  # of all bodies
        self.gate, self.held = threading.Event(), threading.Event()
        self.server = Server((host, 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://{host}:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()

    def release(self):
        self.gate.set()

    def asked(self, path):
        """The headers of each request for path."""
        return [headers for found, headers in self.requests if found == path]

    def reset(self):
        self.troubles, self.requests, self.etags = {}, [], {}
        self.gate.clear()
        self.held.clear()

    def answer(self, handler):
        path = handler.path.split("?")[0]
        self.requests.append((path, dict(handler.headers)))
        planned = self.troubles.get(path, [])
        kind, *rest = (planned.pop(0) if planned else None) or ("works",)
        data = self.files.get(path)
        if kind == "status" or data is None:
            return self.send(handler, rest[0] if kind == "status" else 404, b"no")
        if kind == "redirect":
            return self.send(handler, 302, b"", {"Location": rest[0], **(rest[1] if rest[1:] else {})})
        etag = self.etags.get(path, f'"{sha256(data)[:16]}"')
        headers = {"ETag": etag, **(rest[0] if kind == "headers" else {})}
        begin = 0
        wanted = handler.headers.get("Range")
        if wanted and kind != "whole" and handler.headers.get("If-Range", etag) == etag:
            begin = int(wanted[len("bytes="):-1])
            if begin >= len(data):
                return self.send(handler, 416, b"")
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        stop = rest[0] if kind in ("cut", "hold") else None
        return self.send(handler, 206 if "Content-Range" in headers else 200, data[begin:], headers,
                         stop, kind == "hold")

    def send(self, handler, status, body, headers=None, stop=None, hold=False):
        handler.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            handler.wfile.write(body[:stop])
            handler.wfile.flush()
            self.sent_bytes += len(body[:stop])
            if hold:
                self.held.set()
                self.gate.wait(600)
                handler.wfile.write(body[stop:])
            elif stop is not None:
                handler.close_connection = True
        except OSError:
            handler.close_connection = True

    def add_registry(self, name, tag, model, **texts):
        """A model in Ollama's layout; texts: template, system, license, params, messages. The path of its
        file."""
        layers = []
        for kind, data in {"model": model, **texts}.items():
            data = data if isinstance(data, bytes) else (
                data if isinstance(data, str) else json.dumps(data)).encode()
            layers.append({"mediaType": f"application/vnd.ollama.image.{kind}",
                           "digest": f"sha256:{sha256(data)}", "size": len(data)})
            self.files[f"/v2/library/{name}/blobs/sha256:{sha256(data)}"] = data
        self.add_manifest(name, tag, {"schemaVersion": 2, "layers": layers})
        return f"/v2/library/{name}/blobs/sha256:{sha256(model)}"

    def add_manifest(self, name, tag, manifest):
        data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        self.files[f"/v2/library/{name}/manifests/{tag}"] = data

    def add_hub(self, repository, files):
        """A repository in Hugging Face's layout; files: path -> bytes."""
        tree = [{"type": "directory", "path": "sub", "size": 0}]
        for path, data in files.items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
            if path.endswith(".gguf"):
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 133}
            tree.append(entry)
            self.files[f"/{repository}/resolve/main/{path}"] = data
        self.files[f"/api/models/{repository}/tree/main"] = json.dumps(tree).encode()
