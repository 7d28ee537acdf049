"""Asks a trained model the held-out questions, reading nothing but the GGUF file, with numpy alone.

    evaluate.py [models/demo.gguf] [--all] [--ask TEXT]...

Prints the answers that are not the subject's own, and the share of those that are. --all asks each
question also in lower case without its marks, and after another question.
"""

import argparse
import pathlib
import random

import numpy as np

import bpe
import gguf
import questions

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Model:
    """Llama with a KV cache, one token at a time."""

    def __init__(self, path):
        meta, self.weights = gguf.read(path)
        get = lambda key: meta["llama." + key]
        self.n_layers, self.dim = get("block_count"), get("embedding_length")
        self.heads, self.kv_heads = get("attention.head_count"), get("attention.head_count_kv")
        self.head_dim = get("rope.dimension_count")
        self.eps = get("attention.layer_norm_rms_epsilon")
        self.context = get("context_length")
        exponent = -np.arange(0, self.head_dim, 2) / self.head_dim
        self.frequency = get("rope.freq_base") ** exponent
        merges = [tuple(line.split(" ")) for line in meta["tokenizer.ggml.merges"]]
        self.tokenizer = bpe.Tokenizer(meta["tokenizer.ggml.tokens"], merges)
        self.end = meta["tokenizer.ggml.eos_token_id"]

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x) + self.eps) * self.weights[name]

    def rotate(self, x, position):
        angle = position * self.frequency
        cos, sin = np.cos(angle), np.sin(angle)
        out = np.empty_like(x)
        out[:, 0::2] = x[:, 0::2] * cos - x[:, 1::2] * sin
        out[:, 1::2] = x[:, 0::2] * sin + x[:, 1::2] * cos
        return out

    def step(self, token, cache):
        """Logits after one more token; cache holds a list of (keys, values) per layer."""
        w = self.weights
        position = len(cache[0])
        x = w["token_embd.weight"][token]
        for i in range(self.n_layers):
            name = "blk.%d." % i
            h = self.norm(x, name + "attn_norm.weight")
            q = (w[name + "attn_q.weight"] @ h).reshape(self.heads, self.head_dim)
            k = (w[name + "attn_k.weight"] @ h).reshape(self.kv_heads, self.head_dim)
            v = (w[name + "attn_v.weight"] @ h).reshape(self.kv_heads, self.head_dim)
            cache[i].append((self.rotate(k, position), v))
            q = self.rotate(q, position).reshape(self.kv_heads, -1, self.head_dim)
            keys = np.stack([pair[0] for pair in cache[i]])
            values = np.stack([pair[1] for pair in cache[i]])
            scores = np.einsum("ghd,tgd->ght", q, keys) * self.head_dim ** -0.5
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            mixed = np.einsum("ght,tgd->ghd", scores, values).reshape(-1)
            x = x + w[name + "attn_output.weight"] @ mixed
            h = self.norm(x, name + "ffn_norm.weight")
            gate = w[name + "ffn_gate.weight"] @ h
            gate = gate / (1 + np.exp(-gate))
            x = x + w[name + "ffn_down.weight"] @ (gate * (w[name + "ffn_up.weight"] @ h))
        return w["token_embd.weight"] @ self.norm(x, "output_norm.weight")

    def answer(self, dialogue, limit=120):
        """Greedy. dialogue: list of (role, text)."""
        ids = [i for role, text in dialogue for i in bpe.message(self.tokenizer, role, text)]
        cache = [[] for _ in range(self.n_layers)]
        for token in ids + bpe.opening(self.tokenizer):
            logits = self.step(token, cache)
        out = []
        while len(out) < limit:
            token = int(np.argmax(logits))
            if token == self.end:
                break
            out.append(token)
            logits = self.step(token, cache)
        return self.tokenizer.decode(out)


def ways(question, subject, subjects, every, rng):
    """(label, dialogue): as written, and with --all in other ways."""
    mark = "?" if questions.asks(question) else ""
    plain = [("user", question[:1].upper() + question[1:] + mark)]
    yield "as written", plain
    if every:
        yield "lower case", [("user", question.lower().rstrip("?!."))]
        yield "one slip", [("user", questions.slip(question, rng))]
        other = rng.choice(subjects)
        before = questions.expand(rng.choice(other.patterns), rng)
        yield "second turn", [("user", before), ("assistant", other.answers[0])] + plain
        yield "system", [("system", "You are a helpful assistant.")] + plain


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default=str(ROOT / "models" / "demo.gguf"))
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--ask", action="append", default=[])
    options = parser.parse_args()
    model = Model(options.model)
    for text in options.ask:
        print("%s\n  %s" % (text, model.answer([("user", text)])))
    if options.ask:
        return
    subjects = questions.load()
    owner = {answer: subject.name for subject in subjects for answer in subject.answers}
    rng = random.Random(3)
    right, asked, whole = {}, {}, 0
    for subject in subjects:
        for question in subject.held_out:
            for label, dialogue in ways(question, subject, subjects, options.all, rng):
                answer = model.answer(dialogue)
                good = owner.get(answer) == subject.name
                whole += answer in owner
                right[label] = right.get(label, 0) + good
                asked[label] = asked.get(label, 0) + 1
                if not good:
                    print("%s (%s): %s\n  %s: %s" % (subject.name, label, dialogue[-1][1],
                                                     owner.get(answer, "?"), answer))
    for label in asked:
        print("%s: %d of %d right (%.1f %%)" %
              (label, right[label], asked[label], 100 * right[label] / asked[label]))
    print("word for word one of the written answers: %d of %d" % (whole, sum(asked.values())))


if __name__ == "__main__":
    main()
