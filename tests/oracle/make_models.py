#!/usr/bin/env python3
"""Makes small random models of every architecture, in shapes unlike each other, and in every block
format.

    make_models.py FOLDER [NAME ...]     writes NAME.gguf and NAME.tokens for all cases or these

A case is a row of CASES: an architecture, its sizes, and what is special about it. Everything
follows from the name of the case, which seeds the random numbers.
"""
import sys
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import formats
import gguf


@dataclass(frozen=True)
class Case:
    name: str
    arch: str
    layers: int = 3
    width: int = 40
    heads: int = 4
    kv: int = 2
    head: int = 12  # size of a query or key head
    v_head: int = 0  # of a value head, if different
    ff: int = 52
    vocab: int = 131
    rope: int = 0  # features that rotate, if not the whole head
    tied: bool = False
    fused_qkv: bool = False
    biases: str = ""  # of q, k, v, o (attention), f (FFN), n (norms), w (output)
    qk_norm: str = ""  # "head", "all", or "each": weights for every head
    experts: int = 0
    used: int = 0
    expert_ff: int = 0
    shared_ff: int = 0
    dense_layers: int = 0
    moe_every: int = 1
    router_bias: bool = False
    tokens: int = 29
    format: str = "F32"  # of the matrices
    expert_format: str = ""
    keys: dict = field(default_factory=dict)  # more keys of the architecture; None removes one
    latent: dict = field(default_factory=dict)  # DeepSeek: q_rank, kv_rank, absorbed
    extra: tuple = ()  # names of further parts, see the functions below


# With these some pairs turn as before, some more slowly, and some in between.
YARN = {
    "context_length": 32768,
    "rope.freq_base": 100.0,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 4096,
}
# Here the end of the range in between lies beyond the last pair.
YARN_SHORT_BASE = {**YARN, "rope.freq_base": 20.0, "rope.scaling.original_context_length": 2048}
LONGROPE = {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.19}
DEEPSEEK_YARN = {**YARN, "rope.scaling.yarn_log_multiplier": 0.0707}
SIGMOID = {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 2.5}
GROUPS = {"expert_group_count": 4, "expert_group_used_count": 2}


def moe(experts, used, expert_ff, **more):
    return {"experts": experts, "used": used, "expert_ff": expert_ff, **more}


def deepseek(name, absorbed, **more):
    base = Case(
        name, "deepseek2", heads=3, kv=3, head=20, v_head=14, rope=8, dense_layers=1, shared_ff=36
    )
    ranks = {"q_rank": 26, "kv_rank": 22, "absorbed": absorbed}
    base = replace(base, **moe(8, 3, 18), latent=ranks, keys={"expert_weights_scale": 1.0})
    return replace(base, **more)


def encoder(name, arch="bert", **more):
    base = Case(
        name,
        arch,
        kv=4,
        head=10,
        rope=0 if arch == "bert" else 10,
        biases="qkvofn",
        extra=("types",),
    )
    return replace(base, **more)


ARCHITECTURE_CASES = [
    Case("llama-heads", "llama", heads=6, kv=6, head=8),
    Case("llama-heads-of-96", "llama", layers=2, head=96, v_head=96),
    Case("llama-heads-of-130", "llama", layers=2, heads=2, kv=1, head=130, v_head=70),
    Case(
        "llama-rope-linear",
        "llama",
        tied=True,
        keys={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    Case("llama-rope-linear-old", "llama", keys={"rope.scale_linear": 2.0}),
    Case("llama-rope-yarn", "llama", keys=YARN),
    Case("llama-rope-yarn-short-base", "llama", keys=YARN_SHORT_BASE),
    Case(
        "llama-rope-none", "llama", keys={"rope.scaling.type": "none", "rope.scaling.factor": 4.0}
    ),
    Case(
        "llama-rope-freqs",
        "llama",
        kv=1,
        tied=True,
        keys={"rope.freq_base": 5e5},
        extra=("rope_freqs",),
    ),
    Case("llama-biases", "llama", head=10, biases="qkvof"),
    Case("llama-experts", "llama", kv=4, **moe(5, 3, 24)),
    Case("llama-one-expert", "llama", **moe(3, 1, 24)),
    Case("llama4", "llama4", layers=5, **moe(6, 1, 28, shared_ff=28, moe_every=2)),
    Case(
        "llama4-two-experts",
        "llama4",
        layers=4,
        extra=("rope_freqs",),
        **moe(4, 2, 28, shared_ff=28),
    ),
    Case(
        "llama4-chunks",
        "llama4",
        layers=4,
        width=8,
        heads=1,
        kv=1,
        head=8,
        ff=8,
        vocab=16,
        tokens=8215,
    ),
    Case("qwen2", "qwen2", kv=1, head=10, biases="qkv", tied=True),
    Case("qwen2-yarn", "qwen2", heads=5, kv=5, head=8, biases="qkvw", keys=YARN),
    Case("qwen2moe", "qwen2moe", head=10, biases="qkv", **moe(7, 4, 20, shared_ff=44)),
    Case("qwen3", "qwen3", head=16, qk_norm="head"),
    Case("qwen3-embedding", "qwen3", qk_norm="head", tied=True, keys={"pooling_type": 3}),
    Case(
        "qwen3-rerank",
        "qwen3",
        qk_norm="head",
        tied=True,
        keys={"pooling_type": 4},
        extra=("classifier",),
    ),
    Case("qwen3moe", "qwen3moe", qk_norm="head", **moe(9, 4, 20)),
    Case("grok", "grok", head=10, **moe(5, 2, 24), extra=("layer_output_norm",)),
    Case(
        "grok-keys",
        "grok",
        heads=2,
        kv=1,
        head=20,
        **moe(5, 2, 24),
        keys={
            "embedding_scale": 9.5,
            "logit_scale": 0.7,
            "attention.output_scale": 0.21,
            "attn_logit_softcapping": 2.5,
            "final_logit_softcapping": 4.0,
        },
        extra=("post_ffw_norm", "dense_too"),
    ),
    Case("command-r", "command-r", kv=4, head=10, tied=True, keys={"logit_scale": 0.0625}),
    Case(
        "command-r-plus",
        "command-r",
        layers=64,
        width=24,
        heads=2,
        kv=1,
        ff=20,
        tied=True,
        qk_norm="each",
        keys={"logit_scale": 0.8},
    ),
    Case(
        "cohere2",
        "cohere2",
        layers=9,
        head=10,
        tied=True,
        keys={"logit_scale": 0.25, "attention.sliding_window": 5},
    ),
    Case(
        "gemma2",
        "gemma2",
        layers=5,
        tied=True,
        keys={
            "attention.sliding_window": 6,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    Case("gemma2-27b", "gemma2", layers=46, width=24, heads=2, kv=1, head=6, ff=32, tied=True),
    Case(
        "gemma3",
        "gemma3",
        layers=8,
        qk_norm="head",
        keys={
            "attention.sliding_window": 7,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    Case(
        "gemma3-27b",
        "gemma3",
        layers=62,
        width=24,
        heads=2,
        kv=1,
        head=6,
        ff=32,
        tied=True,
        qk_norm="head",
        keys={"attention.sliding_window": 4},
    ),
    Case("phi3", "phi3", heads=4, kv=4, head=10, fused_qkv=True, tied=True, extra=("fused_ffn",)),
    Case(
        "phi3-long",
        "phi3",
        heads=4,
        kv=2,
        head=10,
        fused_qkv=True,
        rope=8,
        keys={**LONGROPE, "rope.scaling.original_context_length": 8},
        extra=("fused_ffn", "longrope"),
    ),
    Case(
        "phi3-short",
        "phi3",
        heads=5,
        kv=1,
        head=8,
        fused_qkv=True,
        keys={**LONGROPE, "rope.scaling.original_context_length": 1024},
        extra=("fused_ffn", "longrope"),
    ),
    deepseek("deepseek2", False, keys={"expert_weights_scale": 16.0, **DEEPSEEK_YARN}),
    deepseek(
        "deepseek2-lite", False, layers=27, latent={"q_rank": 0, "kv_rank": 22, "absorbed": False}
    ),
    deepseek("deepseek2-groups", False, keys={"expert_weights_scale": 1.0, **GROUPS}),
    deepseek("deepseek3", True, router_bias=True, keys={**SIGMOID, **GROUPS, **DEEPSEEK_YARN}),
    deepseek(
        "deepseek3-kimi",
        True,
        heads=6,
        **moe(12, 4, 10, shared_ff=20),
        router_bias=True,
        keys={**SIGMOID, **YARN},
    ),
    deepseek("deepseek3-split", False, router_bias=True, keys={**SIGMOID, **GROUPS}),
    Case(
        "gpt-oss",
        "gpt-oss",
        layers=5,
        biases="qkvof",
        **moe(7, 3, 30),
        router_bias=True,
        keys={**YARN, "attention.sliding_window": 9},
        extra=("sinks",),
    ),
    Case("glm4", "glm4", head=10, rope=4, biases="qkv", extra=("fused_ffn",)),
    Case("glm4-tied", "glm4", kv=4, head=10, rope=6, tied=True, extra=("fused_ffn",)),
    Case(
        "glm4moe",
        "glm4moe",
        layers=5,
        rope=6,
        biases="qkv",
        **moe(6, 2, 16, shared_ff=32, dense_layers=2),
        router_bias=True,
        keys={**SIGMOID, "nextn_predict_layers": 1},
        extra=("next_token",),
    ),
    Case(
        "glm4moe-norm",
        "glm4moe",
        rope=8,
        biases="qkv",
        qk_norm="head",
        **moe(6, 2, 16, shared_ff=16, dense_layers=1),
        router_bias=True,
        keys={"expert_weights_scale": 1.0},
    ),
    Case(
        "minimax-m2",
        "minimax-m2",
        ff=16,
        rope=6,
        qk_norm="all",
        **moe(10, 4, 16),
        router_bias=True,
        keys={"expert_gating_func": 2},
    ),
    Case(
        "granite",
        "granite",
        keys={
            "logit_scale": 6.0,
            "residual_scale": 0.22,
            "embedding_scale": 12.0,
            "attention.scale": 0.11,
        },
    ),
    Case(
        "granite-no-rope",
        "granite",
        tied=True,
        keys={
            "logit_scale": 3.0,
            "residual_scale": 1.5,
            "embedding_scale": 2.0,
            "attention.scale": 0.3,
            "rope.scaling.finetuned": False,
        },
    ),
    Case("olmo2", "olmo2", kv=4, head=10, qk_norm="all"),
    Case(
        "olmo3",
        "olmo2",
        layers=6,
        head=10,
        qk_norm="all",
        keys={**YARN, "attention.sliding_window": 6},
    ),
    Case("starcoder2", "starcoder2", head=10, biases="qkvofn"),
    encoder("bert-cls", extra=(), keys={"pooling_type": 2}),
    encoder("bert-mean-fused", heads=5, kv=5, head=8, fused_qkv=True, keys={"pooling_type": 1}),
    encoder("bert-last", keys={"pooling_type": 3}),
    encoder("xlm-roberta", keys={"pooling_type": 2}, extra=("types", "unigram")),
    encoder(
        "xlm-roberta-rerank",
        keys={"pooling_type": 4},
        extra=("types", "unigram", "pooler", "classifier"),
    ),
    encoder("bert-rerank", keys={"pooling_type": 4}, extra=("types", "classifier")),
    encoder(
        "nomic-bert",
        "nomic-bert",
        fused_qkv=True,
        biases="n",
        keys={"pooling_type": 1, "rope.freq_base": 1e3},
    ),
    encoder(
        "nomic-bert-cls",
        "nomic-bert",
        heads=5,
        kv=5,
        head=8,
        rope=8,
        fused_qkv=True,
        biases="qon",
        keys={"pooling_type": 2},
    ),
]


def format_cases():
    """Each block format in a dense model, and in experts those that are used there."""
    dense = Case("", "llama", layers=1, width=256, heads=4, kv=2, head=64, ff=512, vocab=320)
    for name in formats.FORMATS:
        yield replace(dense, name="format-" + name, format=name)
    for name in ("F16", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4"):
        yield replace(
            dense,
            name="experts-" + name,
            arch="qwen3moe",
            qk_norm="head",
            expert_format=name,
            **moe(3, 3, 256),
        )
    oss = next(c for c in ARCHITECTURE_CASES if c.name == "gpt-oss")
    yield replace(
        oss,
        name="gpt-oss-MXFP4",
        layers=2,
        width=64,
        head=16,
        used=7,
        expert_ff=96,
        expert_format="MXFP4",
    )
    sizes = dict(
        width=64,
        head=48,
        v_head=32,
        rope=16,
        ff=96,
        used=8,
        expert_ff=32,
        shared_ff=64,
        dense_layers=0,
    )
    latent = {"q_rank": 64, "kv_rank": 64, "absorbed": True}
    yield deepseek("deepseek3-Q8_0", True, layers=1, **sizes, latent=latent, format="Q8_0")


CASES = ARCHITECTURE_CASES + list(format_cases())

NORMS = {
    "grok": ("attn_norm", "attn_output_norm", "ffn_norm"),
    "command-r": ("attn_norm",),
    "cohere2": ("attn_norm",),
    "gemma2": ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
    "gemma3": ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
    "glm4": ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
    "gpt-oss": ("attn_norm", "post_attention_norm"),
    "glm4moe": ("attn_norm", "post_attention_norm"),
    "olmo2": ("post_attention_norm", "post_ffw_norm"),
    "bert": ("attn_output_norm", "layer_output_norm"),
    "nomic-bert": ("attn_output_norm", "layer_output_norm"),
}
LAYER_NORM = ("command-r", "cohere2", "starcoder2", "bert", "nomic-bert")
UNGATED = ("starcoder2", "bert")
ENCODERS = ("bert", "nomic-bert")


def random_blocks(rng, form, shape, deviation):
    """Any bytes at all, but for the factors, which make the values' deviation what it should be."""
    block = formats.FORMATS[form]
    count = int(np.prod(shape)) // block.length
    if block.length == 1:
        values = rng.normal(0, deviation, count).astype("<f4")
        if form == "BF16":
            return (values.view("<u4") >> 16).astype("<u2").tobytes()
        return values.astype({"F32": "<f4", "F16": "<f2"}[form]).tobytes()
    data = rng.integers(0, 256, (count, block.bytes), np.uint8)
    if form == "MXFP4":
        data[:, 0] = rng.integers(-1, 2, count) + 126 + round(np.log2(deviation / 2))
        return data.tobytes()
    if form == "TQ2_0":
        # Of the four codes only three are in use.
        data = (
            (rng.integers(0, 3, data.shape + (4,)) << np.array([0, 2, 4, 6]))
            .sum(2)
            .astype(np.uint8)
        )

    def sample(factors):
        probe = data[:512].copy()
        for at, factor in zip(block.scales, factors):
            probe[:, at : at + 2] = np.array([factor], "<f2").view(np.uint8)
        return block.decode(probe)

    factors = [1.0]
    if len(block.scales) == 2:
        # The second factor shifts the values: choose it so that their mean is zero.
        factors.append(-sample([1, 0]).mean() / sample([0, 1]).mean())
    factors = np.array(factors) * deviation / sample(factors).std()
    spread = rng.uniform(0.6, 1.4, (count, 1))
    for at, factor in zip(block.scales, factors):
        data[:, at : at + 2] = (factor * spread).astype("<f2").view(np.uint8)
    return data.tobytes()


class Maker:
    def __init__(self, case):
        self.case, self.rng = case, np.random.default_rng(zlib.crc32(case.name.encode()))
        self.tensors = {}

    def matrix(self, name, rows, columns, experts=0, gain=1.0):
        case = self.case
        form = case.expert_format if experts and case.expert_format else case.format
        shape = (experts, rows, columns) if experts else (rows, columns)
        data = random_blocks(self.rng, form, shape, gain / np.sqrt(columns))
        self.tensors[name + ".weight"] = (form, shape, data)

    def vector(self, name, *shape, mean=0.0, deviation=0.1):
        self.tensors[name] = self.rng.normal(mean, deviation, shape).astype(np.float32)

    def norm(self, name, *shape):
        self.vector(name + ".weight", *shape, mean=1.0, deviation=0.2)
        if "n" in self.case.biases:
            self.vector(name + ".bias", *shape)

    def linear(self, name, rows, columns, bias):
        self.matrix(name, rows, columns)
        if bias in self.case.biases:
            self.vector(name + ".bias", rows)

    def attention(self, blk):
        c = self.case
        q, k, v = c.heads * c.head, c.kv * c.head, c.kv * (c.v_head or c.head)
        if c.fused_qkv:
            self.linear(blk + "attn_qkv", q + k + v, c.width, "q")
        else:
            for name, rows in zip("qkv", (q, k, v)):
                self.linear(blk + "attn_" + name, rows, c.width, name)
        self.linear(blk + "attn_output", c.width, c.heads * (c.v_head or c.head), "o")
        shapes = {
            "head": [(c.head,)] * 2,
            "all": [(q,), (k,)],
            "each": [(c.heads, c.head), (c.kv, c.head)],
        }
        for name, shape in zip("qk", shapes.get(c.qk_norm, [])):
            self.norm(blk + f"attn_{name}_norm", *shape)
        if "sinks" in c.extra:
            self.vector(blk + "attn_sinks.weight", c.heads, deviation=1.0)

    def latent_attention(self, blk):
        c, q_rank, rank = self.case, self.case.latent["q_rank"], self.case.latent["kv_rank"]
        plain, v = c.head - c.rope, c.v_head
        if q_rank:
            self.matrix(blk + "attn_q_a", q_rank, c.width)
            self.norm(blk + "attn_q_a_norm", q_rank)
            self.matrix(blk + "attn_q_b", c.heads * c.head, q_rank)
        else:
            self.matrix(blk + "attn_q", c.heads * c.head, c.width)
        self.matrix(blk + "attn_kv_a_mqa", rank + c.rope, c.width)
        self.norm(blk + "attn_kv_a_norm", rank)
        if c.latent["absorbed"]:
            self.matrix(blk + "attn_k_b", rank, plain, c.heads)
            self.matrix(blk + "attn_v_b", v, rank, c.heads)
        else:
            self.matrix(blk + "attn_kv_b", c.heads * (plain + v), rank)
        self.matrix(blk + "attn_output", c.width, c.heads * v)

    def dense(self, blk, inner, suffix=""):
        c = self.case
        fused = "fused_ffn" in c.extra
        if not fused and c.arch not in UNGATED:
            self.linear(blk + "ffn_gate" + suffix, inner, c.width, "f")
        self.linear(blk + "ffn_up" + suffix, 2 * inner if fused else inner, c.width, "f")
        self.linear(blk + "ffn_down" + suffix, c.width, inner, "f")

    def experts(self, blk):
        c = self.case
        self.vector(blk + "ffn_gate_inp.weight", c.experts, c.width, deviation=1 / np.sqrt(c.width))
        for name, rows, columns in (("gate", c.expert_ff, c.width), ("up", c.expert_ff, c.width)):
            self.matrix(blk + f"ffn_{name}_exps", rows, columns, c.experts)
        self.matrix(blk + "ffn_down_exps", c.width, c.expert_ff, c.experts)
        if "f" in c.biases:
            for name, rows in (("gate", c.expert_ff), ("up", c.expert_ff), ("down", c.width)):
                self.vector(blk + f"ffn_{name}_exps.bias", c.experts, rows, deviation=3.0)
        if c.router_bias:
            name = "ffn_gate_inp.bias" if c.arch == "gpt-oss" else "exp_probs_b.bias"
            self.vector(blk + name, c.experts)
        if c.shared_ff:
            self.dense(blk, c.shared_ff, "_shexp")
        if c.arch == "qwen2moe":
            self.vector(blk + "ffn_gate_inp_shexp.weight", c.width, deviation=0.3)
        if "dense_too" in c.extra:
            self.dense(blk, c.ff)

    def block(self, layer):
        c, blk = self.case, f"blk.{layer}."
        norms = NORMS.get(c.arch, ("attn_norm", "ffn_norm"))
        norms += tuple(name for name in ("layer_output_norm", "post_ffw_norm") if name in c.extra)
        for name in norms:
            self.norm(blk + name, c.width)
        (self.latent_attention if c.latent else self.attention)(blk)
        if c.experts and layer >= c.dense_layers and (layer + 1) % c.moe_every == 0:
            self.experts(blk)
        else:
            self.dense(blk, c.ff)

    def all_tensors(self):
        c = self.case
        self.matrix(
            "token_embd", c.vocab, c.width, gain=np.sqrt(c.width) if c.arch in ENCODERS else 1.0
        )
        if c.arch in ENCODERS:
            self.norm("token_embd_norm", c.width)
            if "types" in c.extra:
                self.vector(
                    "token_types.weight", 1 if "unigram" in c.extra else 2, c.width, deviation=0.5
                )
            if c.arch == "bert":
                self.vector("position_embd.weight", context_length(c), c.width, deviation=0.5)
        else:
            self.norm("output_norm", c.width)
            if not c.tied:
                self.linear("output", c.vocab, c.width, "w")
        if "pooler" in c.extra:
            self.vector("cls.weight", c.width, c.width, deviation=1 / np.sqrt(c.width))
            self.vector("cls.bias", c.width)
        if "classifier" in c.extra:
            self.vector(
                "cls.output.weight", len(labels(c)), c.width, deviation=1 / np.sqrt(c.width)
            )
            if c.arch == "bert":
                self.vector("cls.output.bias", len(labels(c)))
        rotating = (c.rope or c.head) // 2
        for kind, name in (("rope_freqs", "rope_freqs"), ("longrope", "rope_factors_long")):
            if kind in c.extra:
                self.tensors[name + ".weight"] = self.rng.uniform(1, 8, rotating).astype(np.float32)
        if "longrope" in c.extra:
            self.tensors["rope_factors_short.weight"] = self.rng.uniform(1, 1.3, rotating).astype(
                np.float32
            )
        for layer in range(c.layers):
            self.block(layer)
        if "next_token" in c.extra:
            blk = f"blk.{c.layers - 1}.nextn."
            self.matrix(blk + "eh_proj", c.width, 2 * c.width)
            for name in ("enorm", "hnorm", "shared_head_norm"):
                self.norm(blk + name, c.width)
        return self.tensors


def labels(case):
    return ["yes", "no"] if case.arch == "qwen3" else ["low", "middle", "high"]


def context_length(case):
    return max(64, case.tokens)


def all_keys(c):
    eps = (
        "attention.layer_norm_epsilon"
        if c.arch in LAYER_NORM
        else "attention.layer_norm_rms_epsilon"
    )
    own = {
        "context_length": context_length(c) if c.arch in ENCODERS else max(2048, c.tokens),
        "embedding_length": c.width,
        "block_count": c.layers,
        "feed_forward_length": c.ff,
        "attention.head_count": c.heads,
        "attention.head_count_kv": c.kv,
        "attention.key_length": c.head,
        "attention.value_length": c.v_head or c.head,
        "vocab_size": c.vocab,
        eps: 2e-3,  # large enough to be seen
    }
    if c.arch not in ENCODERS:
        own["rope.freq_base"] = 10000.0
    else:
        own["attention.causal"] = False
    if c.rope or c.arch in ("llama", "llama4", "gpt-oss"):
        own["rope.dimension_count"] = c.rope or c.head
    if c.experts:
        own |= {"expert_count": c.experts, "expert_used_count": c.used}
        # Mixtral and Grok files give the experts' size as the layer's.
        own[
            "feed_forward_length" if c.arch in ("llama", "grok") else "expert_feed_forward_length"
        ] = c.expert_ff
        if c.arch == "grok" and "dense_too" in c.extra:
            own |= {"feed_forward_length": c.ff, "expert_feed_forward_length": c.expert_ff}
    if c.arch == "qwen2moe":
        own["expert_shared_feed_forward_length"] = c.shared_ff
    if c.arch in ("deepseek2", "glm4moe"):
        own |= {
            "leading_dense_block_count": c.dense_layers,
            "expert_shared_count": c.shared_ff // c.expert_ff,
        }
    if c.arch == "llama4":
        own |= {"interleave_moe_layer_step": c.moe_every if c.experts else 0}
        own |= {"expert_feed_forward_length": c.expert_ff or c.ff}
    if c.latent:
        own |= {"attention.kv_lora_rank": c.latent["kv_rank"]}
        if c.latent["q_rank"]:
            own |= {"attention.q_lora_rank": c.latent["q_rank"]}
        if c.latent["absorbed"]:
            # The plain lengths now describe the cache: one head of latent and rotated key.
            own |= {"attention.key_length_mla": c.head, "attention.value_length_mla": c.v_head}
            own |= {
                "attention.key_length": c.latent["kv_rank"] + c.rope,
                "attention.value_length": c.latent["kv_rank"],
            }
            own |= {"attention.head_count_kv": 1}
    if "classifier" in c.extra:
        own["classifier.output_labels"] = labels(c)
    own |= c.keys
    return {f"{c.arch}.{name}": value for name, value in own.items() if value is not None}


def tokenizer_keys(c):
    """A vocabulary of numbers, so that the file is whole; no test here tokenises."""
    kind = ("t5" if "unigram" in c.extra else "bert") if c.arch in ENCODERS else "llama"
    special = {"llama": ["<unk>", "<s>", "</s>"], "t5": ["<s>", "<pad>", "</s>", "<unk>"]}
    special["bert"] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = special[kind] + [f"\u2581{i}" for i in range(len(special[kind]), c.vocab)]
    own = {
        "model": kind,
        "pre": "default",
        "tokens": tokens,
        "scores": [float(-i) for i in range(c.vocab)],
        "token_type": [3] * len(special[kind]) + [1] * (c.vocab - len(special[kind])),
        "bos_token_id": {"llama": 1, "t5": 0, "bert": 2}[kind],
        "eos_token_id": {"llama": 2, "t5": 2, "bert": 3}[kind],
        "unknown_token_id": {"llama": 0, "t5": 3, "bert": 1}[kind],
    }
    if c.arch in ENCODERS:
        own |= {
            "token_type_count": 1 if "unigram" in c.extra else 2,
            "seperator_token_id": own["eos_token_id"],
        }
        own |= {"padding_token_id": 1 if kind == "t5" else 0}
    return {f"tokenizer.ggml.{name}": value for name, value in own.items()}


def make(case, folder):
    keys = {
        "general.architecture": case.arch,
        "general.name": "made for a test",
        **all_keys(case),
        **tokenizer_keys(case),
    }
    maker = Maker(case)
    path = Path(folder) / f"{case.name}.gguf"
    gguf.write(path, keys, maker.all_tensors())
    tokens = maker.rng.integers(0, case.vocab, case.tokens)
    path.with_suffix(".tokens").write_text(" ".join(map(str, tokens)) + "\n")
    return path, tokens


if __name__ == "__main__":
    for one in CASES:
        if len(sys.argv) == 2 or one.name in sys.argv[2:]:
            make(one, sys.argv[1])
