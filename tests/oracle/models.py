"""Forward passes in float64, written to be read: what each architecture computes, from the tokens
to the logits.

An architecture is a row of ARCHITECTURES: the facts in which it differs from the plain one, Llama 2
(Touvron et al., 2023): pre-norm, rotary positions, grouped-query attention, SwiGLU. Numbers (sizes,
scales, windows) come from the file's keys. Whole sequences are computed at once; there is no cache.

Matrices are [out, in]; x is [tokens, features]; heads are [tokens, heads, size].
"""
import dataclasses
from dataclasses import dataclass

import numpy as np

import gguf


@dataclass(frozen=True)
class Facts:
    norm: str = "rms"  # "rms" (Zhang and Sennrich, 2019) or "layer" (Ba et al., 2016)
    # Names of the norms around the two halves of a block: before and after attention, before and
    # after the FFN.
    attn_in: str = "attn_norm"
    attn_out: str = ""
    ffn_in: str = "ffn_norm"
    ffn_out: str = ""
    parallel: bool = False  # both halves read the same normed input (Cohere)
    rope: str = "halves"  # rotated pairs: "halves" (j, j + n/2), "neighbours" (2j, 2j + 1), "none"
    qk_norm: str = ""  # "head": each head by itself, "all": the whole projection
    full_every: int = 0  # with windows: every so many layers one sees everything
    default_window: int = 0
    activation: str = "silu"  # "silu", "gelu" (tanh form), "clamped" (gpt-oss)
    # How router logits become weights: "softmax", "sigmoid", "chosen" (softmax over the chosen).
    gating: str = "softmax"
    renormalise: bool = False  # weights of the chosen experts add up to one
    embedding_scale: float = 1.0
    causal: bool = True


ARCHITECTURES = {
    # Llama 2 and 3, Mistral; with experts Mixtral (Jiang et al., 2024).
    "llama": Facts(rope="neighbours", renormalise=True),
    # Llama 4 (Meta's llama-models, llama4/model.py and moe.py).
    "llama4": Facts(rope="neighbours", full_every=4, gating="sigmoid"),
    "qwen2": Facts(),
    "qwen2moe": Facts(),
    "qwen3": Facts(qk_norm="head"),
    "qwen3moe": Facts(qk_norm="head", renormalise=True),
    # Grok-1 (xai-org/grok-1, model.py): sandwich norms, capped scores.
    "grok": Facts(
        attn_out="attn_output_norm",
        ffn_out="layer_output_norm",
        activation="gelu",
        renormalise=True,
        embedding_scale=78.38367176906169,
    ),
    # Cohere (transformers, modeling_cohere.py and modeling_cohere2.py).
    "command-r": Facts(norm="layer", parallel=True, rope="neighbours", qk_norm="head"),
    "cohere2": Facts(norm="layer", parallel=True, rope="neighbours", full_every=4),
    # Gemma 2 and 3 (google/gemma_pytorch, model.py).
    "gemma2": Facts(
        attn_out="post_attention_norm",
        ffn_out="post_ffw_norm",
        full_every=2,
        default_window=4096,
        activation="gelu",
    ),
    "gemma3": Facts(
        attn_out="post_attention_norm",
        ffn_out="post_ffw_norm",
        full_every=6,
        qk_norm="head",
        activation="gelu",
    ),
    "phi3": Facts(renormalise=True),
    # DeepSeek-V2 and V3 (DeepSeek-AI, 2024), see latent_attention.
    "deepseek2": Facts(rope="neighbours"),
    # gpt-oss (openai/gpt-oss, torch/model.py).
    "gpt-oss": Facts(
        ffn_in="post_attention_norm", full_every=2, activation="clamped", gating="chosen"
    ),
    "glm4": Facts(attn_out="post_attention_norm", ffn_out="post_ffw_norm", rope="neighbours"),
    "glm4moe": Facts(ffn_in="post_attention_norm", qk_norm="head", gating="sigmoid"),
    "minimax-m2": Facts(qk_norm="all", gating="sigmoid", renormalise=True),
    "granite": Facts(rope="neighbours", renormalise=True),
    # OLMo 2 (and 3, with windows): norms only after the halves.
    "olmo2": Facts(
        attn_in="",
        attn_out="post_attention_norm",
        ffn_in="",
        ffn_out="post_ffw_norm",
        qk_norm="all",
        full_every=4,
    ),
    "starcoder2": Facts(norm="layer", activation="gelu"),
    # BERT (Devlin et al., 2018): each half is added first and normed after; encoder_block below.
    "bert": Facts(norm="layer", rope="none", activation="gelu", causal=False),
    "nomic-bert": Facts(norm="layer", causal=False),
}
GATINGS = {1: "softmax", 2: "sigmoid", 3: "chosen"}


class Model:
    """A file's keys and tensors under their short names, and the facts of its architecture."""

    def __init__(self, path):
        self.file = gguf.File(path)
        self.arch = self.file.keys["general.architecture"]
        facts = ARCHITECTURES[self.arch]
        gating = GATINGS.get(self.key("expert_gating_func", 0), facts.gating)
        self.facts = dataclasses.replace(
            facts,
            gating=gating,
            renormalise=self.key("expert_weights_norm", facts.renormalise),
            causal=self.key("attention.causal", facts.causal),
        )
        if self.facts.norm == "rms":
            self.eps = self.key("attention.layer_norm_rms_epsilon")
        else:
            self.eps = self.key("attention.layer_norm_epsilon")
        self.width = self.key("embedding_length")
        self.layers = self.key("block_count") - self.key("nextn_predict_layers", 0)
        self.decoded = {}

    def key(self, name, default=None):
        value = self.file.keys.get(f"{self.arch}.{name}", default)
        if value is None:
            raise KeyError(f"{self.arch}.{name}")
        return value

    def per_layer(self, name, layer, default=None):
        value = self.key(name, default)
        return value[layer] if isinstance(value, list) else value

    def has(self, name):
        return name in self.file.tensors

    def get(self, name):
        if name not in self.decoded:
            self.decoded[name] = self.file.decode(name).astype(np.float64)
        return self.decoded[name]

    def optional(self, name, default=None):
        return self.get(name) if self.has(name) else default

    def linear(self, name, x):
        y = x @ self.get(name + ".weight").T
        return y + self.optional(name + ".bias", 0.0)

    def norm(self, name, x):
        weight = self.optional(name + ".weight", 1.0)
        if self.facts.norm == "layer":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps)
        return x * weight + self.optional(name + ".bias", 0.0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def cap(x, limit):
    return limit * np.tanh(x / limit)


# --------------------------------------------------------------------------------- rotary positions


@dataclass(frozen=True)
class Rope:
    """Su et al., 2021; linear interpolation: Chen et al., 2023; YaRN: Peng et al., 2023."""

    size: int  # features of a head that rotate, from the first
    base: float
    scale: float  # of the frequencies: one over the factor by which the context was stretched
    yarn: float  # share of YaRN: 1 or 0
    magnitude: float  # of the rotated vectors
    factors: object  # divisors of the frequencies, or 1
    original: int  # the context before it was stretched
    fast: float
    slow: float

    def angles(self, positions):
        """cos and sin [tokens, size / 2]."""
        j = np.arange(self.size // 2)
        theta = positions[:, None] * self.base ** (-2 * j / self.size) / self.factors
        stretched = theta * self.scale
        if self.yarn:
            # Pairs that turn often within the original context keep their frequency, slow ones are
            # stretched.
            def pair(turns):
                return (
                    self.size
                    * np.log(self.original / (turns * 2 * np.pi))
                    / (2 * np.log(self.base))
                )

            low = max(0, np.floor(pair(self.fast)))
            high = min(self.size - 1, np.ceil(pair(self.slow)))
            keep = (1 - np.clip((j - low) / max(0.001, high - low), 0, 1)) * self.yarn
            stretched = stretched * (1 - keep) + theta * keep
        return np.cos(stretched) * self.magnitude, np.sin(stretched) * self.magnitude

    def rotate(self, x, positions, pairing):
        """x [tokens, heads, head size]."""
        cos, sin = (a[:, None, :] for a in self.angles(positions))
        n = self.size
        if pairing == "neighbours":
            first, second = slice(0, n, 2), slice(1, n, 2)
        else:
            first, second = slice(0, n // 2), slice(n // 2, n)
        a, b = x[..., first], x[..., second]
        y = x.copy()
        y[..., first] = a * cos - b * sin
        y[..., second] = a * sin + b * cos
        return y


def rope_of(model, head_size, context):
    scaling = model.key("rope.scaling.type", "linear")
    factor = model.key("rope.scaling.factor", 0.0) or model.key("rope.scale_linear", 0.0) or 1.0
    if scaling == "none":
        factor = 1.0
    yarn = model.key("rope.scaling.yarn_ext_factor", 1.0 if scaling == "yarn" else 0.0)
    magnitude = model.key("rope.scaling.attn_factor", 1.0) * model.key(
        "rope.scaling.yarn_attn_factor", 1.0
    )
    # YaRN sharpens attention as the context grows. DeepSeek does it in the scores instead, see
    # latent_attention.
    if yarn and model.arch != "deepseek2":
        magnitude *= 1 + 0.1 * np.log(factor)
    original = model.key("rope.scaling.original_context_length", model.key("context_length"))
    # LongRoPE (Ding et al., 2024): one set of divisors up to the original context, another beyond
    # it.
    if model.has("rope_freqs.weight"):
        factors = model.get("rope_freqs.weight")
    else:
        factors = model.optional(
            f"rope_factors_{'long' if context > original else 'short'}.weight", 1.0
        )
    return Rope(
        size=model.key("rope.dimension_count", head_size),
        base=model.key("rope.freq_base", 10000.0),
        scale=1 / factor,
        yarn=yarn,
        magnitude=magnitude,
        factors=factors,
        original=original,
        fast=model.key("rope.scaling.yarn_beta_fast", 8.0 if model.arch == "grok" else 32.0),
        slow=model.key("rope.scaling.yarn_beta_slow", 1.0),
    )


def rope_of_layer(model, rope, layer):
    """The rotation of one layer, or None: some architectures leave layers without positions."""
    windowed = is_windowed(model, layer)
    if model.arch == "gemma3" and windowed:
        return dataclasses.replace(rope, base=10000.0, scale=1.0)
    if model.arch == "olmo2" and windowed:
        return dataclasses.replace(rope, scale=1.0, yarn=0.0, magnitude=1.0)
    if model.arch == "cohere2" and not windowed:
        return None
    if model.arch == "llama4" and model.key("attention.sliding_window", -1) != 0 and not windowed:
        return None
    if model.arch == "granite" and not model.key("rope.scaling.finetuned", True):
        return None
    return None if model.facts.rope == "none" else rope


# ---------------------------------------------------------------------------------------- attention


LLAMA4_CHUNK = 8192


def is_windowed(model, layer):
    every = model.facts.full_every
    if model.arch == "llama4":
        windows = model.key("attention.sliding_window", -1) != 0
    else:
        windows = every and model.key("attention.sliding_window", model.facts.default_window) > 0
    return bool(windows) and layer % every < every - 1


def visible(model, layer, tokens):
    """A function from a range of queries to [queries, keys]: which positions they may look at."""
    window = model.key("attention.sliding_window", model.facts.default_window)

    def mask(rows):
        query, key = np.arange(tokens)[rows, None], np.arange(tokens)[None, :]
        seen = key <= query if model.facts.causal else np.ones((len(query), tokens), bool)
        if is_windowed(model, layer):
            if model.arch == "llama4":
                seen &= key >= query // LLAMA4_CHUNK * LLAMA4_CHUNK
            else:
                seen &= query - key < window
        return seen

    return mask


def attend(q, k, v, seen, scale, soft_cap=0.0, sinks=None):
    """q [tokens, heads, size], k and v [tokens, kv heads, size] -> [tokens, heads * v size].

    A sink (Xiao et al., 2023; gpt-oss) is one more score per head that takes its share of the
    attention and has no value.
    """
    k, v = (np.repeat(a, q.shape[1] // a.shape[1], axis=1) for a in (k, v))
    out = np.empty((len(q), q.shape[1], v.shape[2]))
    for begin in range(
        0, len(q), 256
    ):  # a part of the queries at a time keeps long texts in memory
        rows = slice(begin, begin + 256)
        scores = np.einsum("qhd,khd->hqk", q[rows], k, optimize=True) * scale
        if soft_cap:
            scores = cap(scores, soft_cap)
        scores = np.where(seen(rows), scores, -np.inf)
        if sinks is not None:
            column = np.broadcast_to(sinks[:, None, None], scores.shape[:2] + (1,))
            scores = np.concatenate([scores, column], axis=2)
        out[rows] = np.einsum("hqk,khd->qhd", softmax(scores)[..., : len(k)], v, optimize=True)
    return out.reshape(len(q), -1)


def score_scale(model, head_size, heads):
    if model.arch == "grok":
        return model.key("attention.output_scale", 0.08838834764831845)
    if model.arch == "granite":
        return model.key("attention.scale") or 1 / np.sqrt(head_size)
    # The 27-billion-parameter Gemmas divide by the width per head, which is not their head size.
    if (model.arch, model.layers) in (("gemma2", 46), ("gemma3", 62)):
        return 1 / np.sqrt(model.width / heads)
    return 1 / np.sqrt(head_size)


def project(model, blk, x, heads, kv_heads, k_size, v_size):
    """Queries, keys and values as [tokens, heads, size]; Phi-3 and others store the three matrices
    as one."""
    if model.has(blk + "attn_qkv.weight"):
        parts = np.cumsum([heads * k_size, kv_heads * k_size])
        q, k, v = np.split(model.linear(blk + "attn_qkv", x), parts, axis=1)
    else:
        q, k, v = (model.linear(blk + "attn_" + name, x) for name in "qkv")
    if model.facts.qk_norm == "all":
        q, k = model.norm(blk + "attn_q_norm", q), model.norm(blk + "attn_k_norm", k)
    q, k = q.reshape(-1, heads, k_size), k.reshape(-1, kv_heads, k_size)
    if model.facts.qk_norm == "head" and model.has(blk + "attn_q_norm.weight"):
        q, k = model.norm(blk + "attn_q_norm", q), model.norm(blk + "attn_k_norm", k)
    return q, k, v.reshape(-1, kv_heads, v_size)


def attention(model, layer, x, context):
    blk, positions = f"blk.{layer}.", np.arange(len(x))
    heads = model.per_layer("attention.head_count", layer)
    kv_heads = model.per_layer("attention.head_count_kv", layer, heads)
    k_size = model.key("attention.key_length", model.width // heads)
    v_size = model.key("attention.value_length", model.width // heads)
    q, k, v = project(model, blk, x, heads, kv_heads, k_size, v_size)

    rope = rope_of_layer(model, rope_of(model, k_size, context), layer)
    if rope:
        q, k = (rope.rotate(a, positions, model.facts.rope) for a in (q, k))
    if model.arch == "llama4":
        if rope and model.key("expert_count", 0) != 128:
            q, k = (a / np.sqrt((a * a).mean(-1, keepdims=True) + model.eps) for a in (q, k))
        if not rope:
            # Attention temperature of the layers without positions.
            q = q * (1 + 0.1 * np.log(np.floor((positions + 1) / LLAMA4_CHUNK) + 1))[:, None, None]

    soft_cap = 0.0
    if model.arch in ("gemma2", "grok"):
        soft_cap = model.key("attn_logit_softcapping", 50.0 if model.arch == "gemma2" else 30.0)
    scale = score_scale(model, k_size, heads)
    sinks = model.optional(blk + "attn_sinks.weight")
    out = attend(q, k, v, visible(model, layer, len(x)), scale, soft_cap, sinks)
    return model.linear(blk + "attn_output", out)


def latent_attention(model, layer, x, context):
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values are made from one
    small latent vector per token, plus one rotated key shared by all heads."""
    blk, positions, tokens = f"blk.{layer}.", np.arange(len(x)), len(x)
    heads, rank = model.per_layer("attention.head_count", layer), model.key(
        "attention.kv_lora_rank"
    )
    k_size = model.key("attention.key_length_mla", 0) or model.key("attention.key_length")
    v_size = model.key("attention.value_length_mla", 0) or model.key("attention.value_length")
    rope = rope_of(model, model.key("rope.dimension_count"), context)
    plain = k_size - rope.size

    if model.has(blk + "attn_q.weight"):
        q = model.linear(blk + "attn_q", x)
    else:
        q = model.linear(
            blk + "attn_q_b", model.norm(blk + "attn_q_a_norm", model.linear(blk + "attn_q_a", x))
        )
    q = q.reshape(tokens, heads, k_size)
    latent, k_rope = np.split(model.linear(blk + "attn_kv_a_mqa", x), [rank], axis=1)
    latent = model.norm(blk + "attn_kv_a_norm", latent)
    q_rope = rope.rotate(q[..., plain:], positions, model.facts.rope)
    k_rope = rope.rotate(k_rope[:, None, :], positions, model.facts.rope)

    if model.has(blk + "attn_kv_b.weight"):
        kv = model.linear(blk + "attn_kv_b", latent).reshape(tokens, heads, plain + v_size)
        k, v = kv[..., :plain], kv[..., plain:]
    else:
        # The same matrix stored in two parts: k_b [heads, rank, plain], v_b [heads, v size, rank].
        k = np.einsum("tr,hrd->thd", latent, model.get(blk + "attn_k_b.weight"))
        v = np.einsum("tr,hdr->thd", latent, model.get(blk + "attn_v_b.weight"))
    q = np.concatenate([q[..., :plain], q_rope], axis=2)
    k = np.concatenate([k, np.repeat(k_rope, heads, axis=1)], axis=2)

    sharpen = 1 - model.key("rope.scaling.yarn_log_multiplier", 0.0) * np.log(rope.scale)
    out = attend(q, k, v, visible(model, layer, tokens), sharpen**2 / np.sqrt(k_size))
    return model.linear(blk + "attn_output", out)


# ------------------------------------------------------------------------------------- feed-forward


def gated(activation, gate, up):
    if activation == "clamped":
        gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
        return gate * sigmoid(1.702 * gate) * (up + 1)
    return (gelu if activation == "gelu" else silu)(gate) * up


def dense_ffn(model, blk, x, suffix=""):
    """Gated (Shazeer, 2020), in Phi-3 and GLM-4 with gate and up as one matrix; or the plain two
    layers."""
    activation = model.facts.activation
    up = model.linear(blk + "ffn_up" + suffix, x)
    inner = model.file.tensors[blk + f"ffn_down{suffix}.weight"][1][1]
    if model.has(blk + f"ffn_gate{suffix}.weight"):
        h = gated(activation, model.linear(blk + "ffn_gate" + suffix, x), up)
    elif up.shape[1] == 2 * inner:
        h = gated(activation, up[:, :inner], up[:, inner:])
    else:
        h = gelu(up) if activation == "gelu" else silu(up)
    return model.linear(blk + "ffn_down" + suffix, h)


def route(model, blk, x):
    """The chosen experts [tokens, used] and their weights."""
    logits = model.linear(blk + "ffn_gate_inp", x)
    count, used = logits.shape[1], model.key("expert_used_count")
    gating = model.facts.gating
    scores = {"softmax": softmax, "sigmoid": sigmoid, "chosen": lambda a: a}[gating](logits)
    # DeepSeek-V3: a bias per expert balances the load; it takes part in the choice and not in the
    # weight.
    choice = (
        logits if model.arch == "llama4" else scores + model.optional(blk + "exp_probs_b.bias", 0.0)
    )
    groups = model.key("expert_group_count", 0)
    if groups > 1:
        # Only the best groups stay, ranked by the sum of their two best experts.
        grouped = choice.reshape(len(x), groups, -1)
        rank = np.sort(grouped, axis=2)[..., -2:].sum(2)
        best = np.argsort(-rank, axis=1, kind="stable")[:, : model.key("expert_group_used_count")]
        kept = np.zeros((len(x), groups), bool)
        np.put_along_axis(kept, best, True, axis=1)
        choice = np.where(kept[..., None], grouped, -np.inf).reshape(len(x), count)
    chosen = np.argsort(-choice, axis=1, kind="stable")[:, :used]
    weights = np.take_along_axis(scores, chosen, axis=1)
    if gating == "chosen":
        weights = softmax(weights)
    if model.facts.renormalise:
        weights = weights / np.maximum(weights.sum(1, keepdims=True), 2.0**-14)
    return chosen, weights * model.key("expert_weights_scale", 1.0)


def experts_ffn(model, blk, x):
    """Mixture of experts (Shazeer et al., 2017; shared experts: DeepSeekMoE, Dai et al., 2024)."""
    chosen, weights = route(model, blk, x)
    gate, up, down = (model.get(blk + f"ffn_{name}_exps.weight") for name in ("gate", "up", "down"))
    gate_b, up_b, down_b = (
        model.optional(blk + f"ffn_{name}_exps.bias", np.zeros(len(gate)))
        for name in ("gate", "up", "down")
    )
    out = np.zeros_like(x)
    for t in range(len(x)):
        for e, weight in zip(chosen[t], weights[t]):
            # Llama 4 weighs what goes into an expert, all others what comes out.
            token = x[t] * weight if model.arch == "llama4" else x[t]
            h = gated(model.facts.activation, gate[e] @ token + gate_b[e], up[e] @ token + up_b[e])
            y = down[e] @ h + down_b[e]
            out[t] += y if model.arch == "llama4" else y * weight
    if model.has(blk + "ffn_up_shexp.weight"):
        shared = dense_ffn(model, blk, x, "_shexp")
        if model.has(blk + "ffn_gate_inp_shexp.weight"):
            shared = shared * sigmoid(
                x @ model.get(blk + "ffn_gate_inp_shexp.weight").reshape(-1, 1)
            )
        out = out + shared
    if model.arch == "grok" and model.has(blk + "ffn_up.weight"):
        out = (out + dense_ffn(model, blk, x)) * np.sqrt(0.5)
    return out


def ffn(model, layer, x):
    blk = f"blk.{layer}."
    return (experts_ffn if model.has(blk + "ffn_gate_inp.weight") else dense_ffn)(model, blk, x)


# --------------------------------------------------------------------------------------- the models


def decoder_block(model, layer, x, context):
    facts, blk = model.facts, f"blk.{layer}."
    mixer = latent_attention if model.arch == "deepseek2" else attention
    scale = model.key("residual_scale", 1.0)

    def normed(name, y):
        # Old Grok files call the last norm layer_output_norm, new ones post_ffw_norm.
        if name == "layer_output_norm" and not model.has(blk + name + ".weight"):
            name = "post_ffw_norm"
        return model.norm(blk + name, y) if name else y

    h = normed(facts.attn_in, x)
    mixed = normed(facts.attn_out, mixer(model, layer, h, context))
    if facts.parallel:
        return x + mixed + ffn(model, layer, h)
    x = x + scale * mixed
    return x + scale * normed(facts.ffn_out, ffn(model, layer, normed(facts.ffn_in, x)))


def encoder_block(model, layer, x, context):
    blk = f"blk.{layer}."
    x = model.norm(blk + "attn_output_norm", x + attention(model, layer, x, context))
    return model.norm(blk + "layer_output_norm", x + ffn(model, layer, x))


def pool(model, x):
    """One vector for a text: mean, first or last token, or a classifier's score on the first
    (RoBERTa's head)."""
    kind = model.key("pooling_type", 0)
    if kind == 0:
        return x
    if kind == 1:
        return x.mean(0)
    last = kind == 3 or model.arch == "qwen3"
    y = x[-1] if last else x[0]
    if kind == 4:
        if model.has("cls.weight"):
            y = np.tanh(model.linear("cls", y))
        y = model.linear("cls.output", y)
        # Qwen3's two labels are yes and no; other rerankers have one, the score. The first counts.
        y = (softmax(y) if model.arch == "qwen3" else y)[:1]
    return y


def forward(model, tokens, context=None):
    """Logits [tokens, vocabulary], or the pooled vector of an embedding model. `context` is the
    length the session was opened for; LongRoPE depends on it."""
    tokens = np.asarray(tokens)
    context = context or len(tokens)
    x = model.get("token_embd.weight")[tokens]
    encoder = model.arch in ("bert", "nomic-bert")
    if encoder:
        if model.has("token_types.weight"):
            x = x + model.get("token_types.weight")[0]
        if model.has("position_embd.weight"):
            x = x + model.get("position_embd.weight")[: len(tokens)]
        x = model.norm("token_embd_norm", x)
    elif model.arch in ("gemma2", "gemma3"):
        x = x * np.sqrt(model.width)
    else:
        x = x * model.key("embedding_scale", model.facts.embedding_scale)
    for layer in range(model.layers):
        x = (encoder_block if encoder else decoder_block)(model, layer, x, context)
    if encoder:
        return pool(model, x)

    x = model.norm("output_norm", x)
    if model.key("pooling_type", 0):
        return pool(model, x)
    if model.has("output.weight"):
        logits = model.linear("output", x)
    else:
        logits = x @ model.get("token_embd.weight").T
    return scale_logits(model, logits)


def scale_logits(model, logits):
    if model.arch == "granite":
        logits = logits / model.key("logit_scale")
    elif model.arch in ("grok", "command-r", "cohere2"):
        logits = logits * model.key("logit_scale", 0.5773502691896257)
    limit = model.key("final_logit_softcapping", 30.0 if model.arch == "gemma2" else 0.0)
    if model.arch in ("gemma2", "grok") and limit:
        logits = cap(logits, limit)
    return logits
