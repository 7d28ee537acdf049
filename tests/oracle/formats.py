"""The block formats: how many values a block holds, how many bytes it takes, and what its bytes
stand for.

Every decoder takes the blocks as a byte array [blocks, block bytes] and returns float32 [blocks,
block length]. All arithmetic is in float32, one rounding per operation, in the order written here:
decoding is exact to the bit.
"""
from collections import namedtuple

import numpy as np

Format = namedtuple("Format", "id length bytes decode scales")


def _half(b, at):
    """The 16-bit float at byte `at` of each block, as a float32 column."""
    return np.ascontiguousarray(b[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(q):
    """The low halves of the bytes, then the high halves."""
    return np.concatenate([q & 15, q >> 4], axis=1)


def _bits(b, at):
    """The 32 bits at byte `at`, lowest first."""
    return np.unpackbits(b[:, at : at + 4], axis=1, bitorder="little")


def _f(x):
    return x.astype(np.float32)


def _f32(b):
    return b.view("<f4").astype(np.float32)


def _f16(b):
    return b.view("<f2").astype(np.float32)


def _bf16(b):
    return (b.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(b):
    return _half(b, 0) * (_f(_nibbles(b[:, 2:])) - 8)


def _q4_1(b):
    return _half(b, 0) * _f(_nibbles(b[:, 4:])) + _half(b, 2)


def _q5_0(b):
    return _half(b, 0) * (_f(_nibbles(b[:, 6:]) | _bits(b, 2) << 4) - 16)


def _q5_1(b):
    return _half(b, 0) * _f(_nibbles(b[:, 8:]) | _bits(b, 4) << 4) + _half(b, 2)


def _q8_0(b):
    return _half(b, 0) * _f(b[:, 2:].view(np.int8))


def _planes(b, step, masks):
    """Two halves of 128 values; in each, `masks` groups of 32 values lie in one 32-byte run, `step`
    bits apart."""
    runs = b.reshape(len(b), 2, 1, 32)
    shifts = np.arange(0, step * masks, step, dtype=np.uint8).reshape(1, 1, masks, 1)
    return (runs >> shifts & (2**step - 1)).reshape(len(b), 16, 16)


def _q2_k(b):
    q = _f(_planes(b[:, 16:80], 2, 4))
    scale = _half(b, 80) * _f(b[:, :16] & 15)
    least = _half(b, 82) * _f(b[:, :16] >> 4)
    return (scale[:, :, None] * q - least[:, :, None]).reshape(len(b), 256)


def _q3_k(b):
    low = _planes(b[:, 32:96], 2, 4)
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    high = (b[:, None, :32] >> shifts & 1).reshape(len(b), 16, 16)
    scale_low = _nibbles(b[:, 96:104])
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)
    scale_high = (b[:, None, 104:108] >> shifts & 3).reshape(len(b), 16)
    scale = _half(b, 108) * (_f(scale_low | scale_high << 4) - 32)
    return (scale[:, :, None] * (_f(low | high << 2) - 4)).reshape(len(b), 256)


def _scales_6bit(b):
    """Eight scales and eight minima of six bits in twelve bytes."""
    low, mid, high = b[:, 0:4], b[:, 4:8], b[:, 8:12]
    scale = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=1)
    least = np.concatenate([mid & 63, high >> 4 | mid >> 6 << 4], axis=1)
    return _f(scale), _f(least)


def _with_minima(b, q):
    scale, least = _scales_6bit(b[:, 4:16])
    scale, least = _half(b, 0) * scale, _half(b, 2) * least
    return (scale[:, :, None] * _f(q.reshape(len(b), 8, 32)) - least[:, :, None]).reshape(
        len(b), 256
    )


def _nibble_runs(q):
    """Four runs of 32 bytes, each 32 low halves and then 32 high halves."""
    runs = q.reshape(len(q), 4, 1, 32)
    return (runs >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15).reshape(len(q), 8, 32)


def _q4_k(b):
    return _with_minima(b, _nibble_runs(b[:, 16:144]))


def _q5_k(b):
    high = b[:, None, 16:48] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1) & 1
    return _with_minima(b, _nibble_runs(b[:, 48:176]) | high << 4)


def _q6_k(b):
    low = (
        b[:, :128].reshape(len(b), 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15
    )
    high = _planes(b[:, 128:192], 2, 4)
    scale = _half(b, 208) * _f(b[:, 192:208].view(np.int8))
    return (scale[:, :, None] * (_f(low.reshape(len(b), 16, 16) | high << 4) - 32)).reshape(
        len(b), 256
    )


NON_LINEAR = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


def _iq4_nl(b):
    return _half(b, 0) * NON_LINEAR[_nibbles(b[:, 2:])]


def _iq4_xs(b):
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(len(b), 8)
    pairs = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scale = _half(b, 0) * (_f(low | pairs.astype(np.uint8) << 4) - 32)
    q = b[:, 8:136].reshape(len(b), 8, 1, 16) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15
    return (scale[:, :, None] * NON_LINEAR[q.reshape(len(b), 8, 32)]).reshape(len(b), 256)


def _trits(b, count):
    """Byte c holds a fraction c/256 whose first digits in base 3 are `count` trits; digit-major
    order."""
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:count].reshape(1, count, 1)
    digits = (b[:, None, :] * powers).astype(np.uint16) * 3 >> 8
    return _f(digits.reshape(len(b), -1)) - 1


def _tq1_0(b):
    return _half(b, 52) * np.concatenate(
        [_trits(b[:, :32], 5), _trits(b[:, 32:48], 5), _trits(b[:, 48:52], 4)], 1
    )


def _tq2_0(b):
    return _half(b, 64) * (_f(_planes(b[:, :64], 2, 4).reshape(len(b), 256)) - 1)


# OCP Microscaling Formats 1.0: E2M1 elements and one power-of-two scale (E8M0, bias 127).
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def _mxfp4(b):
    return np.ldexp(E2M1[_nibbles(b[:, 1:])], b[:, :1].astype(np.int32) - 127)


# `scales` names the bytes that hold 16-bit float factors; a made-up block needs sensible ones there
# and may have any other bytes.
FORMATS = {
    "F32": Format(0, 1, 4, _f32, ()),
    "F16": Format(1, 1, 2, _f16, ()),
    "BF16": Format(30, 1, 2, _bf16, ()),
    "Q4_0": Format(2, 32, 18, _q4_0, (0,)),
    "Q4_1": Format(3, 32, 20, _q4_1, (0, 2)),
    "Q5_0": Format(6, 32, 22, _q5_0, (0,)),
    "Q5_1": Format(7, 32, 24, _q5_1, (0, 2)),
    "Q8_0": Format(8, 32, 34, _q8_0, (0,)),
    "Q2_K": Format(10, 256, 84, _q2_k, (80, 82)),
    "Q3_K": Format(11, 256, 110, _q3_k, (108,)),
    "Q4_K": Format(12, 256, 144, _q4_k, (0, 2)),
    "Q5_K": Format(13, 256, 176, _q5_k, (0, 2)),
    "Q6_K": Format(14, 256, 210, _q6_k, (208,)),
    "IQ4_NL": Format(20, 32, 18, _iq4_nl, (0,)),
    "IQ4_XS": Format(23, 256, 136, _iq4_xs, (0,)),
    "TQ1_0": Format(34, 256, 54, _tq1_0, (52,)),
    "TQ2_0": Format(35, 256, 66, _tq2_0, (64,)),
    "MXFP4": Format(39, 32, 17, _mxfp4, ()),
}
BY_ID = {form.id: name for name, form in FORMATS.items()}


def size_bytes(name, shape):
    form = FORMATS[name]
    assert (
        shape[-1] % form.length == 0
    ), f"a row of {shape[-1]} is not a whole number of {name} blocks"
    return int(np.prod(shape)) // form.length * form.bytes


def decode(name, data, shape):
    form = FORMATS[name]
    blocks = np.frombuffer(data, np.uint8).reshape(-1, form.bytes)
    return form.decode(blocks).reshape(shape)
