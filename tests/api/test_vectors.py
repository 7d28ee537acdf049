#!/usr/bin/env python3
"""Embeddings, rankings and gaps over a live server with small made-up models."""
import base64
import json
import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "oracle"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import gguf  # noqa: E402
import server  # noqa: E402
import tap  # noqa: E402

REPORT = tap.Report()
check = REPORT.check
GREEDY = {"temperature": 0}
MARKS = {"pre": 5, "suf": 6, "mid": 7}


def model_with_marks(folder):
    """The demo model, three of whose tokens stand for the marks around a gap."""
    demo = gguf.File(server.DEMO)
    keys = dict(demo.keys)
    for mark, token in MARKS.items():
        keys[f"tokenizer.ggml.fim_{mark}_token_id"] = token
    path = folder / "marks.gguf"
    gguf.write(path, keys, dict(demo.tensors))
    return path


def length(vector):
    return sum(x * x for x in vector) ** 0.5


def check_embeddings(live):
    texts = ["5 6", "7 8 9"]
    status, body = live.json("POST", "/v1/embeddings", {"model": "encoder", "input": texts})
    vectors = [d["embedding"] for d in body["data"]]
    check(status == 200 and [d["index"] for d in body["data"]] == [0, 1] and
          all(abs(length(v) - 1) < 1e-3 for v in vectors) and vectors[0] != vectors[1] and
          body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0, "openai: embeddings", body)
    status, body = live.json("POST", "/v1/embeddings",
                             {"model": "encoder", "input": texts[0], "encoding_format": "base64"})
    data = base64.b64decode(body["data"][0]["embedding"])
    floats = struct.unpack(f"<{len(data) // 4}f", data)
    check(max(abs(a - b) for a, b in zip(floats, vectors[0])) < 1e-6, "openai: base64", body)
    status, body = live.json("POST", "/v1/embeddings",
                             {"model": "encoder", "input": texts, "dimensions": 4})
    short = [d["embedding"] for d in body["data"]]
    ratio = vectors[1][0] / short[1][0]
    check(all(len(v) == 4 and abs(length(v) - 1) < 1e-3 for v in short) and
          all(abs(s * ratio - v) < 1e-5 for s, v in zip(short[1], vectors[1])), "openai: dimensions", body)
    status, tokens = live.json("POST", "/tokenize",
                               {"model": "encoder", "content": texts[0], "add_special": True})
    status, body = live.json("POST", "/v1/embeddings", {"model": "encoder", "input": tokens["tokens"]})
    check(body["data"][0]["embedding"] == vectors[0], "openai: an embedding of tokens", body)
    status, body = live.json("POST", "/embedding", {"model": "encoder", "content": texts[0]})
    check(body == [{"index": 0, "embedding": [vectors[0]]}], "llama: an embedding", body)
    check(live.json("POST", "/embeddings", {"model": "encoder", "input": texts[0]})[1]["object"] == "list",
          "/embeddings of who names a model is OpenAI's")
    check(isinstance(live.json("POST", "/embeddings", {"content": texts[0]})[1], list),
          "/embeddings of who names none is llama-server's")
    status, body = live.json("POST", "/api/embed", {"model": "encoder", "input": texts})
    check(body["embeddings"] == vectors, "ollama: embeddings", body)
    status, body = live.json("POST", "/api/embeddings", {"model": "encoder", "prompt": texts[0]})
    check(body == {"embedding": vectors[0]}, "ollama: the older form", body)
    for name, ask, word in [
        ("too many dimensions", {"dimensions": 100000}, "dimensions"),
        ("a format that is none", {"encoding_format": "hex"}, "encoding_format"),
        ("a text that is too long", {"input": "5 " * 5000}, "too large"),
        ("a chat model", {"model": "marks"}, "no embedding model"),
        ("a reranker", {"model": "ranker"}, "/v1/rerank"),
    ]:
        status, body = live.json("POST", "/v1/embeddings", {"model": "encoder", "input": "5", **ask})
        check(status == 400 and word in body["error"]["message"], f"embeddings: {name}", body)


def check_ranking(live):
    documents = ["6", "7 8", "9 5 4"]
    ask = {"model": "ranker", "query": "5", "documents": documents}
    done = tap.consort("embed", live.ranker, "--query", "5", "--json", *documents)
    scores = {r["index"]: r["score"] for r in json.loads(done)["results"]}
    status, body = live.json("POST", "/v1/rerank", ask)
    found = body["results"]
    check(status == 200 and all(abs(scores[r["index"]] - r["relevance_score"]) < 1e-5 for r in found) and
          [r["index"] for r in found] == sorted(scores, key=lambda i: -scores[i]) and
          body["usage"]["total_tokens"] > 0, "rerank: the best first", (body, scores))
    status, body = live.json("POST", "/rerank", {**ask, "top_n": 2, "return_documents": True})
    check(body["results"] == [{**r, "document": {"text": documents[r["index"]]}} for r in found[:2]],
          "rerank: the best two with their texts", body)
    status, body = live.json("POST", "/v1/reranking", {"model": "ranker", "query": "5", "texts": documents})
    check(body == [{"index": r["index"], "score": r["relevance_score"]} for r in found],
          "rerank: texts in, a list out", body)
    status, body = live.json("POST", "/v1/rerank", {**ask, "model": "encoder", "documents": ["5", "7 8"]})
    check(body["results"][0]["index"] == 0 and abs(body["results"][0]["relevance_score"] - 1) < 1e-4,
          "rerank: an embedding model gives the cosine", body)
    for name, change in [("no documents", {"documents": []}), ("documents that are none", {"documents": [1]}),
                         ("no query", {"query": None}), ("a chat model", {"model": "marks"}),
                         ("top_n of nothing", {"top_n": 0})]:
        status, body = live.json("POST", "/v1/rerank", {**ask, **change})
        check(status == 400 and body["error"]["message"], f"rerank: {name}", body)


def check_infill(live):
    def tokens(text):
        return live.json("POST", "/tokenize", {"model": "marks", "content": text})[1]["tokens"]

    def answer(path, body):
        return live.json("POST", path, {"model": "marks", **GREEDY, **body})

    before, after = "consort ", " is private"
    prompt = [MARKS["pre"], *tokens(before), MARKS["suf"], *tokens(after), MARKS["mid"]]
    text = answer("/completion", {"prompt": prompt, "n_predict": 6})[1]["content"]
    ask = {"input_prefix": before, "input_suffix": after, "n_predict": 6}
    status, body = answer("/infill", ask)
    check(status == 200 and body["content"] == text and body["tokens_evaluated"] == len(prompt),
          "infill: as its tokens", (body, text))
    status, body = answer("/infill", {**ask, "prompt": "it"})
    check(body["tokens_evaluated"] == len(prompt) + len(tokens("it")), "infill: what is written of it", body)
    extra = [{"filename": "a.c", "text": "int x;"}]
    status, body = answer("/infill", {**ask, "input_extra": extra})
    check(body["tokens_evaluated"] == len(prompt) + len(tokens("int x;")), "infill: another file", body)
    status, body = answer("/v1/completions", {"prompt": before, "suffix": after, "max_tokens": 6})
    check(body["choices"][0]["text"] == text, "openai: a suffix", body)
    status, body = answer("/api/generate", {"prompt": before, "suffix": after, "stream": False,
                                            "options": {**GREEDY, "num_predict": 6}})
    check(body["response"] == text, "ollama: a suffix", body)
    for name, change in [("no prefix", {"input_prefix": None}), ("no suffix", {"input_suffix": 5}),
                         ("a file without text", {"input_extra": [{"filename": "ok"}]}),
                         ("a name that is none", {"input_extra": [{"filename": 1, "text": "a"}]}),
                         ("files that are none", {"input_extra": 5})]:
        status, body = answer("/infill", {**ask, **change})
        check(status == 400, f"infill: {name}", body)
    status, body = answer("/infill", {**ask, "model": "demo"})
    check(status == 400 and "no tokens" in body["error"]["message"], "infill: a model that cannot", body)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder, ranker = server.made_up("bert-cls", folder), server.made_up("qwen3-rerank", folder)
        models = (f"encoder={encoder}", f"ranker={ranker}", f"marks={model_with_marks(folder)}",
                  f"demo={server.DEMO}")
        live = server.Server(models=models)
        live.ranker = ranker
        for part in (check_embeddings, check_ranking, check_infill):
            part(live)
        check(live.stop() == 0, "the server ends with 0", live.log)
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
