"""Byte-level BPE with GPT-2's splitting of text into words (Sennrich et al. 2016; Radford et al. 2019)."""

import collections
import re

# GPT-2's pattern with what Python's re has for \p{L} and \p{N}; the same on the texts used here.
SPLIT = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_letters():
    """A printable character for each byte: itself where it is one, else from U+0100 upwards."""
    letters = {}
    for byte in range(256):
        printable = 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255
        letters[byte] = chr(byte) if printable else None
    free = 256
    for byte in range(256):
        if letters[byte] is None:
            letters[byte] = chr(free)
            free += 1
    return letters


LETTER = byte_letters()
BYTE = {letter: byte for byte, letter in LETTER.items()}


def words(text):
    return ["".join(LETTER[b] for b in word.encode("utf-8")) for word in SPLIT.findall(text)]


def learn(counts, n_merges):
    """The best pairs to merge, from words with their counts; ties go to the first in the alphabet."""
    spelled = [list(word) for word in counts]
    weight = list(counts.values())
    pairs = collections.Counter()
    where = collections.defaultdict(set)
    for index, letters in enumerate(spelled):
        for pair in zip(letters, letters[1:]):
            pairs[pair] += weight[index]
            where[pair].add(index)
    merges = []
    while len(merges) < n_merges and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] <= 0:
            break
        merges.append(best)
        for index in sorted(where[best]):
            letters = spelled[index]
            for pair in zip(letters, letters[1:]):
                pairs[pair] -= weight[index]
            spelled[index] = letters = merge(letters, best)
            for pair in zip(letters, letters[1:]):
                pairs[pair] += weight[index]
                where[pair].add(index)
        del pairs[best]
    return merges


def merge(letters, pair):
    out, at = [], 0
    while at < len(letters):
        if at + 1 < len(letters) and (letters[at], letters[at + 1]) == pair:
            out.append(letters[at] + letters[at + 1])
            at += 2
        else:
            out.append(letters[at])
            at += 1
    return out


class Tokenizer:
    def __init__(self, tokens, merges):
        self.tokens = tokens
        self.merges = merges
        self.rank = {pair: rank for rank, pair in enumerate(merges)}
        self.id = {token: index for index, token in enumerate(tokens)}
        self.known = {}

    @classmethod
    def learn(cls, counts, n_vocab):
        merges = learn(counts, n_vocab - 256 - len(SPECIAL))
        tokens = [LETTER[byte] for byte in range(256)]
        tokens += ["".join(pair) for pair in merges] + list(SPECIAL)
        if len(tokens) != n_vocab or len(set(tokens)) != n_vocab:
            raise ValueError("the texts do not give %d different tokens" % n_vocab)
        return cls(tokens, merges)

    def word(self, word, rng=None, drop=0.0):
        """Ids of one word. With drop, merges are left out at random (Provilkov et al. 2020), so that
        the model learns how words are spelled."""
        if not drop and word in self.known:
            return self.known[word]
        letters = list(word)
        while len(letters) > 1:
            pairs = [p for p in zip(letters, letters[1:])
                     if p in self.rank and not (drop and rng.random() < drop)]
            if not pairs:
                break
            letters = merge(letters, min(pairs, key=self.rank.get))
        ids = [self.id[letter] for letter in letters]
        if not drop:
            self.known[word] = ids
        return ids

    def encode(self, text, rng=None, drop=0.0):
        return [i for word in words(text) for i in self.word(word, rng, drop)]

    def decode(self, ids):
        letters = "".join(self.tokens[i] for i in ids if self.tokens[i] not in SPECIAL)
        return bytes(BYTE[letter] for letter in letters).decode("utf-8", "replace")


def message(tokenizer, role, text, **options):
    """One message as the chat template writes it."""
    start, end = tokenizer.id["<|im_start|>"], tokenizer.id["<|im_end|>"]
    return [start] + tokenizer.encode(role + "\n" + text, **options) + [end] \
        + tokenizer.encode("\n")


def opening(tokenizer):
    """What the template writes for the answer to come."""
    return [tokenizer.id["<|im_start|>"]] + tokenizer.encode("assistant\n")
