"""The texts: subjects with an answer and many ways to ask for it.

A text file holds macros (`@name = {a|b}`) and subjects. A subject begins with `== name`; `> ` is an
answer (several: one of them), `*N` its weight, `! ` a question that is kept from training and only
evaluated; every other line is a pattern of questions: {a|b|} is a choice, @name a macro.
"""

import math
import pathlib
import random
import re

HERE = pathlib.Path(__file__).resolve().parent
FILES = ("consort.txt", "words.txt", "talk.txt", "unknown.txt")


class Subject:
    def __init__(self, name):
        self.name = name
        self.answers = []
        self.patterns = []
        self.held_out = []
        self.weight = 1.0

    def draw(self, rng):
        """A question for training: never one of the held-out ones."""
        held_out = {plain(question) for question in self.held_out}
        while True:
            weights = [1 + math.log2(count(pattern)) for pattern in self.patterns]
            question = expand(rng.choices(self.patterns, weights)[0], rng)
            if plain(question) not in held_out:
                return question


def plain(question):
    return question.lower().rstrip("?!. ")


def parse_pattern(text, macros, at=0, inside=False):
    """A pattern as a list of texts and choices; a choice is a list of patterns."""
    sequence, plain = [], ""
    options = []
    while at < len(text):
        c = text[at]
        if c == "{":
            choice, at = parse_pattern(text, macros, at + 1, True)
            sequence += [plain, choice]
            plain = ""
        elif c == "}" and inside:
            return options + [sequence + [plain]], at + 1
        elif c == "|" and inside:
            options.append(sequence + [plain])
            sequence, plain = [], ""
            at += 1
        elif c == "@":
            name = re.match(r"\w+", text[at + 1:]).group()
            sequence += [plain, [macros[name]]]
            plain = ""
            at += 1 + len(name)
        else:
            plain += c
            at += 1
    if inside:
        raise ValueError("a brace is not closed in: " + text)
    return sequence + [plain], at


def count(pattern):
    """How many questions a pattern stands for."""
    n = 1
    for part in pattern:
        if isinstance(part, list):
            n *= sum(count(option) for option in part)
    return n


def expand(pattern, rng):
    """One of them; each is as likely as the others."""
    text = ""
    for part in pattern:
        if isinstance(part, list):
            weights = [count(option) for option in part]
            part = expand(rng.choices(part, weights)[0], rng)
        text += part
    return " ".join(text.split())


def load():
    subjects = []
    for file in FILES:
        macros = {}
        for line in (HERE / file).read_text(encoding="utf-8").splitlines():
            macro = re.match(r"@(\w+) = (.*)", line)
            if not line or line.startswith("# "):
                continue
            if macro:
                macros[macro[1]] = parse_pattern(macro[2], macros)[0]
            elif line.startswith("== "):
                subjects.append(Subject(line[3:]))
            elif line.startswith("> "):
                subjects[-1].answers.append(line[2:])
            elif line.startswith("! "):
                subjects[-1].held_out.append(line[2:])
            elif re.fullmatch(r"\*\d+", line):
                subjects[-1].weight = float(line[1:])
            else:
                subjects[-1].patterns.append(parse_pattern(line, macros)[0])
    return subjects


# What people do to a question: greetings, politeness, shortcuts, slips of the finger, no capitals.

PREFIXES = ("hello, ", "hi, ", "hey, ", "ok, ", "and ", "so ", "please tell me, ", "tell me, ",
            "I have a question: ", "well, ", "now ", "one more question: ", "sorry, ", "please, ",
            "thanks, ", "good, ", "hi! ", "hello! ", "could you tell me: ", "quick question: ",
            "I would like to know: ", "I wonder, ", "but ", "then ")
SUFFIXES = (" please", " now", ", in short", ", thanks", " then", " exactly", ", please", " again",
            " here", " today", ", and why", " for me", " briefly", " in one sentence")
SHORTCUTS = (("what is", "what's"), ("what is", "whats"), ("do not", "don't"), ("is not", "isn't"),
             ("you are", "you're"), ("you", "u"), ("please", "pls"), ("how do I", "how to"),
             ("can not", "can't"), ("are", "r"), ("I am", "I'm"), ("is there", "is there any"),
             ("the ", ""), ("does it", "does this"), ("it", "this"), ("consort", "this program"))
SMALL_WORDS = {"is", "the", "a", "an", "do", "i", "to", "of", "does", "are", "me", "my", "be"}
ASKING = {"what", "how", "why", "who", "where", "when", "which", "is", "are", "does", "do", "can",
          "will", "may", "could", "should", "did", "am", "whats", "what's", "must", "would"}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def slip(text, rng):
    """One typing error in a longer word."""
    words = [m for m in re.finditer(r"[A-Za-z]{4,}", text)]
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start(), word.end() - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2:]
    if kind == 1:
        return text[:at] + text[at + 1:]
    if kind == 2:
        return text[:at] + text[at] + text[at:]
    return text[:at] + rng.choice(LETTERS) + text[at + 1:]


def asks(text):
    words = text.lower().split(",")[-1].split()
    return bool(words) and words[0] in ASKING


def vary(text, rng):
    """The question as somebody might type it."""
    if rng.random() < 0.25:
        old, new = rng.choice(SHORTCUTS)
        text = re.sub(r"\b" + re.escape(old), new, text, count=1)
    if rng.random() < 0.12:
        words = text.split()
        small = [i for i, word in enumerate(words) if word.lower() in SMALL_WORDS]
        if small and len(words) > 2:
            del words[rng.choice(small)]
            text = " ".join(words)
    if rng.random() < 0.12:
        text = rng.choice(PREFIXES) + text
    if rng.random() < 0.06 and text[-1:] not in "?!.":
        text += rng.choice(SUFFIXES)
    is_question = asks(text)
    for _ in range(rng.choices((0, 1, 2), (0.72, 0.22, 0.06))[0]):
        text = slip(text, rng)
    case = rng.random()
    if case < 0.40:
        text = text[:1].upper() + text[1:]
    elif case < 0.75:
        text = text.lower()
    elif case < 0.78:
        text = text.upper()
    if rng.random() < 0.15:
        text = text.replace("consort", "Consort")
    if text[-1:] not in "?!.":
        if is_question:
            text += rng.choices(("?", "", " ?", "??", "."), (0.60, 0.34, 0.03, 0.01, 0.02))[0]
        else:
            text += rng.choices(("", ".", "!", "?"), (0.60, 0.20, 0.08, 0.12))[0]
    return text.strip()


def clashes(subjects, n_samples=400):
    """Questions that two subjects claim, for the writer of the texts."""
    rng = random.Random(1)
    seen, found = {}, set()
    for subject in subjects:
        for pattern in subject.patterns:
            for _ in range(min(n_samples, 3 * count(pattern))):
                question = plain(expand(pattern, rng))
                other = seen.setdefault(question, subject.name)
                if other != subject.name:
                    found.add((question, other, subject.name))
    return sorted(found)


if __name__ == "__main__":
    subjects = load()
    print(len(subjects), "subjects,", sum(len(s.held_out) for s in subjects), "held-out questions,",
          sum(count(p) for s in subjects for p in s.patterns), "questions in all patterns")
    for clash in clashes(subjects):
        print("claimed twice: %s (%s, %s)" % clash)
