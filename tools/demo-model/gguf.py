"""GGUF version 3, as much of it as one small model needs: writing, and reading back for evaluation."""

import struct

import numpy as np

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
PACK = {U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}
TENSOR = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}


def pack(kind, value):
    if kind == STRING:
        data = value.encode("utf-8")
        return struct.pack("<Q", len(data)) + data
    if kind == ARRAY:
        element, values = value
        head = struct.pack("<IQ", element, len(values))
        return head + b"".join(pack(element, v) for v in values)
    return struct.pack(PACK[kind], value)


def write(path, metadata, tensors):
    """metadata: list of (key, kind, value); tensors: list of (name, numpy array, rows first)."""
    head = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    for key, kind, value in metadata:
        head += pack(STRING, key) + struct.pack("<I", kind) + pack(kind, value)
    body = b""
    for name, array in tensors:
        head += pack(STRING, name) + struct.pack("<I", array.ndim)
        head += b"".join(struct.pack("<Q", n) for n in reversed(array.shape))
        head += struct.pack("<IQ", TENSOR[array.dtype], len(body))
        body += array.tobytes()
        body += bytes(-len(body) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT) + body)


class Reader:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, layout):
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return value

    def value(self, kind):
        if kind == STRING:
            size = self.take("<Q")
            self.at += size
            return self.data[self.at - size:self.at].decode("utf-8")
        if kind == ARRAY:
            element, n = self.take("<I"), self.take("<Q")
            return [self.value(element) for _ in range(n)]
        return self.take(PACK[kind])


def read(path):
    """(metadata by key, tensors by name as float32)."""
    with open(path, "rb") as file:
        reader = Reader(file.read())
    if reader.data[:4] != MAGIC:
        raise ValueError("not a GGUF file: %s" % path)
    reader.at = 4
    if reader.take("<I") != VERSION:
        raise ValueError("not GGUF version 3: %s" % path)
    n_tensors, n_keys = reader.take("<Q"), reader.take("<Q")
    metadata = {}
    for _ in range(n_keys):
        key = reader.value(STRING)
        metadata[key] = reader.value(reader.take("<I"))
    entries = []
    for _ in range(n_tensors):
        name = reader.value(STRING)
        shape = [reader.take("<Q") for _ in range(reader.take("<I"))]
        entries.append((name, shape[::-1], reader.take("<I"), reader.take("<Q")))
    start = reader.at + -reader.at % ALIGNMENT
    dtypes = {number: dtype for dtype, number in TENSOR.items()}
    tensors = {}
    for name, shape, kind, offset in entries:
        flat = np.frombuffer(reader.data, dtypes[kind], int(np.prod(shape)), start + offset)
        tensors[name] = flat.astype(np.float32).reshape(shape)
    return metadata, tensors
