"""GGUF version 3: the container of model files, read and written.

    "GGUF"  u32 version  u64 tensors  u64 keys
    keys:    string name, u32 type, value            (string: u64 length, bytes)
    tensors: string name, u32 rank, u64 dims[rank], u32 format, u64 offset
    padding to general.alignment (32), then the tensors' bytes, each padded to the alignment

Dims are written fastest first, so a matrix of `rows` output features has dims [columns, rows];
numpy shapes here are the usual way round: [rows, columns].
"""
import struct

import numpy as np

import formats

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
ALIGNMENT = 32


class _Cursor:
    def __init__(self, data):
        self.data, self.pos = data, 0

    def scalar(self, code):
        value = struct.unpack_from("<" + code, self.data, self.pos)[0]
        self.pos += struct.calcsize("<" + code)
        return value

    def string(self):
        size = self.scalar("Q")
        self.pos += size
        return self.data[self.pos - size : self.pos].decode("utf-8", "surrogateescape")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            element, count = self.scalar("I"), self.scalar("Q")
            return [self.value(element) for _ in range(count)]
        return self.scalar(SCALARS[kind])


class File:
    """keys: name -> value. tensors: name -> (format name, shape, bytes)."""

    def __init__(self, path):
        with open(path, "rb") as f:
            data = f.read()
        if data[:4] != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
        at = _Cursor(data)
        at.pos = 4
        at.scalar("I")
        tensors, keys = at.scalar("Q"), at.scalar("Q")
        self.keys = {}
        for _ in range(keys):
            name = at.string()
            self.keys[name] = at.value(at.scalar("I"))
        entries = []
        for _ in range(tensors):
            name, rank = at.string(), at.scalar("I")
            dims = [at.scalar("Q") for _ in range(rank)]
            entries.append(
                (name, tuple(reversed(dims)), formats.BY_ID[at.scalar("I")], at.scalar("Q"))
            )
        alignment = self.keys.get("general.alignment", ALIGNMENT)
        base = -(-at.pos // alignment) * alignment
        self.tensors = {}
        for name, shape, form, offset in entries:
            size = formats.size_bytes(form, shape)
            self.tensors[name] = (form, shape, data[base + offset : base + offset + size])

    def decode(self, name):
        """The tensor as float32, exactly what its blocks stand for."""
        form, shape, data = self.tensors[name]
        return formats.decode(form, data, shape)


def _string(text):
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _kind(value):
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return UINT32 if value >= 0 else INT32
    if isinstance(value, float):
        return FLOAT32
    return STRING if isinstance(value, str) else ARRAY


def _value(value):
    kind = _kind(value)
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        element = max((_kind(v) for v in value), default=UINT32)
        return struct.pack("<IQ", element, len(value)) + b"".join(
            _string(v) if element == STRING else struct.pack("<" + SCALARS[element], v)
            for v in value
        )
    return struct.pack("<" + SCALARS[kind], value)


def write(path, keys, tensors):
    """tensors: name -> (format name, shape, bytes) or a float array, which is stored as F32."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
    for name, value in keys.items():
        head += [_string(name), struct.pack("<I", _kind(value)), _value(value)]
    body, offset = [], 0
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            tensor = ("F32", tensor.shape, np.ascontiguousarray(tensor, "<f4").tobytes())
        form, shape, data = tensor
        assert len(data) == formats.size_bytes(form, shape), name
        dims = list(reversed(shape))
        head += [_string(name), struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
        head.append(struct.pack("<IQ", formats.FORMATS[form].id, offset))
        body += [data, b"\0" * (-len(data) % ALIGNMENT)]
        offset += len(body[-1]) + len(data)
    prefix = b"".join(head)
    with open(path, "wb") as f:
        f.write(prefix + b"\0" * (-len(prefix) % ALIGNMENT) + b"".join(body))
