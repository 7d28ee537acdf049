"""Trains the demo model and writes it as GGUF. See README.md.

    train.py [--out models/demo.gguf] [--steps N] [--threads N]
    train.py --from models/demo.gguf --steps 600      goes on from a trained file, for texts that changed
"""

import argparse
import collections
import math
import os
import pathlib
import random
import time

import numpy as np
import torch
import torch.nn.functional as F

import bpe
import gguf
import questions

ROOT = pathlib.Path(__file__).resolve().parents[2]

SEED = 1
VOCAB = 2048
CONTEXT = 512
DIM = 256
LAYERS = 4
HEADS, KV_HEADS, HEAD_DIM = 8, 2, 32
FFN = 512
ROPE_BASE = 10000.0
NORM_EPS = 1e-5

PEAK_RATE, LAST_RATE, WARM_UP, DECAY = 1.5e-3, 2e-5, 200, 0.05
AGAIN = 0.4                           # of the peak rate, where a trained file is gone on from
SINGLE_ROWS, SINGLE_POOL = 16, 8      # rows of one question; so many batches are drawn, then sorted
DIALOGUE_ROWS, DIALOGUE_EVERY = 2, 7  # rows of whole dialogues; one step in so many
SHORT = 0.6                           # share of single answers that end when they are decided
CHOICE = 8.0                          # weight of a token that decides which answer it becomes

SHARPNESS = 4.0  # all logits times this, so that a temperature of 0.8 still gives likely answers

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")

SYSTEM = ("You are a helpful assistant.", "You are a helpful assistant", "Answer briefly.",
          "You are consort's demo model.", "Be kind and short.", "You are an AI assistant.",
          "Answer in one sentence.", "You are a friendly chatbot who answers questions.")


# ---- Texts -------------------------------------------------------------------------------------


def learn_tokenizer(subjects):
    """Answers count as often as they will be written; questions as they are asked."""
    rng = random.Random(SEED)
    counts = collections.Counter()
    for subject in subjects:
        for answer in subject.answers:
            for word in bpe.words(answer):
                counts[word] += 40
        for _ in range(120):
            question = questions.vary(subject.draw(rng), rng)
            counts.update(bpe.words("user\n" + question))
    for text in SYSTEM + ("assistant\nA", "system\nA", "user\nA"):
        for word in bpe.words(text):
            counts[word] += 40
    return bpe.Tokenizer.learn(counts, VOCAB)


def decided(row):
    """A row cut after the last token that decides which answer it is: the rest is soon known by
    heart, and costs as much time."""
    ids, counts = row
    end = max(at for at, count in enumerate(counts) if count > 1) + 2
    return ids[:end], counts[:end]


class Texts:
    def __init__(self, subjects, tokenizer):
        self.subjects = subjects
        self.tokenizer = tokenizer
        self.weights = []
        self.following = collections.defaultdict(set)
        for subject in subjects:
            for answer in map(tokenizer.encode, subject.answers):
                for at, token in enumerate(answer):
                    self.following[tuple(answer[:at])].add(token)
            sizes = [questions.count(pattern) for pattern in subject.patterns]
            self.weights.append(subject.weight * (1 + math.log2(sum(sizes)) / 6))

    def turn(self, rng):
        """Ids of a question and its answer, and what each counts: 0 outside the answer, CHOICE where
        the answers of all subjects part from each other, which is where understanding shows."""
        (subject,) = rng.choices(self.subjects, self.weights)
        question = questions.vary(subject.draw(rng), rng)
        drop = 0.15 if rng.random() < 0.2 else 0.0
        ids = bpe.message(self.tokenizer, "user", question, rng=rng, drop=drop)
        opening = bpe.opening(self.tokenizer)
        answer = self.tokenizer.encode(rng.choice(subject.answers))
        newline = self.tokenizer.encode("\n")
        counts = [0] * len(ids + opening)
        for at in range(len(answer)):
            counts.append(CHOICE if len(self.following[tuple(answer[:at])]) > 1 else 1)
        ids += opening + answer + [self.tokenizer.id["<|im_end|>"]] + newline
        return ids, counts + [1] + [0] * len(newline)

    def dialogue(self, rng, n_turns, limit):
        ids, counts = [], []
        if rng.random() < 0.12:
            ids = bpe.message(self.tokenizer, "system", rng.choice(SYSTEM))
            counts = [0] * len(ids)
        for _ in range(n_turns):
            turn_ids, turn_counts = self.turn(rng)
            ids, counts = ids + turn_ids, counts + turn_counts
            if len(ids) >= limit:
                break
        return ids[:limit], counts[:limit]

    def batch(self, step):
        """(ids, counts) as [rows, columns]; depends on step and SEED alone."""
        if step % DIALOGUE_EVERY == DIALOGUE_EVERY - 1:
            rng = random.Random(SEED * 1000003 + step)
            rows = [self.dialogue(rng, CONTEXT, CONTEXT) for _ in range(DIALOGUE_ROWS)]
        else:
            # Rows of like length share a batch, so that little of it is padding.
            pool, part = divmod(step, SINGLE_POOL)
            rng = random.Random(SEED * 1000003 - 1 - pool)
            rows = [self.dialogue(rng, 1, CONTEXT) for _ in range(SINGLE_POOL * SINGLE_ROWS)]
            rows = [decided(row) if rng.random() < SHORT else row for row in rows]
            rows.sort(key=lambda row: len(row[0]))
            rows = rows[part * SINGLE_ROWS:(part + 1) * SINGLE_ROWS]
        width = max(len(ids) for ids, _ in rows)
        pad = self.tokenizer.id["<|endoftext|>"]
        ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
        counts = torch.tensor([counts + [0.0] * (width - len(counts)) for _, counts in rows])
        return ids, counts


# ---- Model ---------------------------------------------------------------------------------------


def rope_table(n_positions):
    frequency = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    angle = torch.outer(torch.arange(n_positions).float(), frequency)
    return angle.cos()[:, None, :], angle.sin()[:, None, :]


def rotate(x, table):
    """x [rows, positions, heads, HEAD_DIM]; neighbours (2i, 2i + 1) turn together, as in llama files."""
    cos, sin = (t[:x.shape[1]] for t in table)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Norm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(DIM))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + NORM_EPS) * self.weight


def linear(n_in, n_out, scale=1.0):
    layer = torch.nn.Linear(n_in, n_out, bias=False)
    torch.nn.init.normal_(layer.weight, std=scale * n_in ** -0.5)
    return layer


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        depth = (2 * LAYERS) ** -0.5
        self.attn_norm = Norm()
        self.attn_q = linear(DIM, HEADS * HEAD_DIM)
        self.attn_k = linear(DIM, KV_HEADS * HEAD_DIM)
        self.attn_v = linear(DIM, KV_HEADS * HEAD_DIM)
        self.attn_output = linear(HEADS * HEAD_DIM, DIM, depth)
        self.ffn_norm = Norm()
        self.ffn_gate = linear(DIM, FFN)
        self.ffn_up = linear(DIM, FFN)
        self.ffn_down = linear(FFN, DIM, depth)

    def attend(self, x, table, future):
        n_rows, n, _ = x.shape
        q = rotate(self.attn_q(x).view(n_rows, n, HEADS, HEAD_DIM), table).transpose(1, 2)
        k = rotate(self.attn_k(x).view(n_rows, n, KV_HEADS, HEAD_DIM), table).transpose(1, 2)
        v = self.attn_v(x).view(n_rows, n, KV_HEADS, HEAD_DIM).transpose(1, 2)
        k = k.repeat_interleave(HEADS // KV_HEADS, 1)
        v = v.repeat_interleave(HEADS // KV_HEADS, 1)
        scores = q @ k.transpose(-1, -2) * HEAD_DIM ** -0.5 + future
        out = scores.softmax(-1) @ v
        return self.attn_output(out.transpose(1, 2).reshape(n_rows, n, HEADS * HEAD_DIM))

    def forward(self, x, table, future):
        x = x + self.attend(self.attn_norm(x), table, future)
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Model(torch.nn.Module):
    """Llama: the token embedding is also the output matrix."""

    def __init__(self):
        super().__init__()
        self.token_embd = torch.nn.Embedding(VOCAB, DIM)
        torch.nn.init.normal_(self.token_embd.weight, std=0.05)
        self.blk = torch.nn.ModuleList([Layer() for _ in range(LAYERS)])
        self.output_norm = Norm()
        self.table = rope_table(CONTEXT)

    def forward(self, ids, wanted):
        """Logits [n, VOCAB] of the positions where wanted [rows, columns] is true."""
        x = self.token_embd(ids)
        future = torch.full((ids.shape[1],) * 2, -1e9).triu(1)
        for layer in self.blk:
            x = layer(x, self.table, future)
        return self.output_norm(x[wanted]) @ self.token_embd.weight.T


# ---- Training --------------------------------------------------------------------------------------


def rate(step, n_steps, peak):
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, n_steps - WARM_UP)
    return LAST_RATE + (peak - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(model):
    """Weight decay for matrices only."""
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
              {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98))


def train(model, texts, n_steps, checkpoint, peak):
    optimizer = make_optimizer(model)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print("going on from step %d" % first, flush=True)
    began, n_tokens, losses, right = time.time(), 0, [], []
    for step in range(first, n_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, n_steps, peak)
        ids, counts = texts.batch(step)
        wanted = counts[:, 1:] > 0
        targets, counts = ids[:, 1:][wanted], counts[:, 1:][wanted]
        logits = model(ids[:, :-1], wanted)
        loss = (F.cross_entropy(logits, targets, reduction="none") * counts).sum() / counts.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        n_tokens += ids.numel()
        choices = counts > 1
        losses.append(loss.item())
        right.append((logits[choices].argmax(-1) == targets[choices]).float().mean().item())
        if step % 50 == 49:
            seconds = time.time() - began
            print("step %d/%d, loss %.4f, %.1f %% of the choices right, %d tokens/s, %d s" %
                  (step + 1, n_steps, np.mean(losses), 100 * np.mean(right), n_tokens / seconds,
                   seconds), flush=True)
            losses, right = [], []
        if step % 250 == 249 or step + 1 == n_steps:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "step": step + 1}, checkpoint)


# ---- The file ----------------------------------------------------------------------------------------


def metadata(tokenizer):
    end, pad = tokenizer.id["<|im_end|>"], tokenizer.id["<|endoftext|>"]
    types = [3 if token in bpe.SPECIAL else 1 for token in tokenizer.tokens]
    return [
        ("general.architecture", gguf.STRING, "llama"),
        ("general.name", gguf.STRING, "consort demo"),
        ("general.description", gguf.STRING,
         "A demonstration: a tiny model that answers simple questions about consort."),
        ("general.license", gguf.STRING, "mit"),
        ("general.file_type", gguf.U32, 1),
        ("llama.vocab_size", gguf.U32, VOCAB),
        ("llama.context_length", gguf.U32, CONTEXT),
        ("llama.embedding_length", gguf.U32, DIM),
        ("llama.block_count", gguf.U32, LAYERS),
        ("llama.feed_forward_length", gguf.U32, FFN),
        ("llama.attention.head_count", gguf.U32, HEADS),
        ("llama.attention.head_count_kv", gguf.U32, KV_HEADS),
        ("llama.attention.layer_norm_rms_epsilon", gguf.F32, NORM_EPS),
        ("llama.rope.dimension_count", gguf.U32, HEAD_DIM),
        ("llama.rope.freq_base", gguf.F32, ROPE_BASE),
        ("tokenizer.ggml.model", gguf.STRING, "gpt2"),
        ("tokenizer.ggml.pre", gguf.STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", gguf.ARRAY, (gguf.STRING, tokenizer.tokens)),
        ("tokenizer.ggml.token_type", gguf.ARRAY, (gguf.I32, types)),
        ("tokenizer.ggml.merges", gguf.ARRAY,
         (gguf.STRING, [" ".join(pair) for pair in tokenizer.merges])),
        ("tokenizer.ggml.bos_token_id", gguf.U32, pad),
        ("tokenizer.ggml.eos_token_id", gguf.U32, end),
        ("tokenizer.ggml.eot_token_id", gguf.U32, end),
        ("tokenizer.ggml.padding_token_id", gguf.U32, pad),
        ("tokenizer.ggml.add_bos_token", gguf.BOOL, False),
        ("tokenizer.ggml.add_eos_token", gguf.BOOL, False),
        ("tokenizer.chat_template", gguf.STRING, TEMPLATE),
    ]


def load(path, model):
    """The weights of a file that save wrote, into model; its tokenizer."""
    metadata_of, tensors = gguf.read(path)
    state = {}
    for name, value in model.state_dict().items():
        array = tensors[name].astype(np.float32) / (SHARPNESS if name == "output_norm.weight" else 1)
        state[name] = torch.from_numpy(array.reshape(tuple(value.shape)).copy())
    model.load_state_dict(state)
    merges = [tuple(merge.split(" ")) for merge in metadata_of["tokenizer.ggml.merges"]]
    return bpe.Tokenizer(metadata_of["tokenizer.ggml.tokens"], merges)


def save(path, model, tokenizer):
    """Matrices in F16, norms in F32."""
    tensors = []
    for name, value in model.state_dict().items():
        array = value.numpy() * (SHARPNESS if name == "output_norm.weight" else 1)
        tensors.append((name, array.astype(np.float16 if array.ndim > 1 else np.float32)))
    gguf.write(path, metadata(tokenizer), tensors)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=str(ROOT / "models" / "demo.gguf"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", default=str(ROOT / "build" / "demo-model.pt"))
    parser.add_argument("--from", dest="begin", help="a trained file to go on from")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    subjects = questions.load()
    model = Model()
    tokenizer = load(options.begin, model) if options.begin else learn_tokenizer(subjects)
    print("%d subjects, %d tokens in the vocabulary, %d parameters" %
          (len(subjects), VOCAB, sum(p.numel() for p in model.parameters())), flush=True)
    os.makedirs(os.path.dirname(options.checkpoint), exist_ok=True)
    os.makedirs(os.path.dirname(options.out), exist_ok=True)
    train(model, Texts(subjects, tokenizer), options.steps,
          pathlib.Path(options.checkpoint), PEAK_RATE * (AGAIN if options.begin else 1))
    save(options.out, model, tokenizer)
    print("%s: %d bytes" % (options.out, os.path.getsize(options.out)))


if __name__ == "__main__":
    main()
