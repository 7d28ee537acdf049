#!/usr/bin/env python3
"""Texts that are drawn at random under a JSON Schema validate, by python3-jsonschema; what cannot be
enforced is refused with its place. schemas.txt has one schema a line, refused.txt a schema and words of
the sentence; beside them schemas are made up at random."""
import json
import pathlib
import random
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import tap

try:
    import jsonschema
except ImportError:
    jsonschema = None

TEXTS = 15
RANDOM_SCHEMAS = 60


def program():
    """tests/support/schema_samples of the build whose consort is tested."""
    words = list(tap.CONSORT)
    words[-1] = str(pathlib.Path(words[-1]).parent / "tests/support/schema_samples")
    return words


def samples(schemas, texts, seed=1):
    """For each schema its texts, or the sentence that refuses it."""
    lines = "".join(json.dumps(s) + "\n" for s in schemas)
    done = subprocess.run(program() + [str(texts), str(seed)], input=lines.encode(), check=True,
                          capture_output=True, timeout=tap.TIMEOUT_S)
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def fault(schema, text):
    """What is wrong with a text, or None."""
    try:
        value = json.loads(text)
    except ValueError as problem:
        return f"{problem}: {text[:200]}"
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.draft202012_format_checker)
    for problem in validator.iter_errors(value):
        return f"{problem.message[:200]}: {text[:200]}"
    return None


class Maker:
    """Schemas at random, of what can be enforced."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def bounds(self, low, high, least, most):
        made = {}
        a, b = sorted(self.random.randint(low, high) for _ in range(2))
        if self.random.random() < 0.6:
            made[least] = a
        if self.random.random() < 0.6:
            made[most] = b
        return made

    def number(self):
        r = self.random
        if r.random() < 0.5:
            made = {"type": "integer", **self.bounds(-2000, 3000, "minimum", "maximum")}
            step = r.choice([2, 3, 5, 7, 10, 12, 40, 99, 700])
            low, high = made.get("minimum", -10**9), made.get("maximum", 10**9)
            if r.random() < 0.5 and high // step * step >= low:
                made["multipleOf"] = step
            return made
        scale = 10 ** r.randint(0, 4)
        low, high = sorted(r.randint(-5000, 5000) / scale for _ in range(2))
        made = {"type": "number"}
        if r.random() < 0.7:
            made[r.choice(["minimum", "exclusiveMinimum"])] = low
        if r.random() < 0.7:
            made[r.choice(["maximum", "exclusiveMaximum"])] = high + 1
        return made

    def string(self):
        r = self.random
        kind = r.randrange(3)
        if kind == 0:
            return {"type": "string", **self.bounds(0, 12, "minLength", "maxLength")}
        if kind == 1:
            return {"enum": r.sample(["a", "b c", "d\"e", "é", "f\\", ""], r.randint(1, 4))}
        return {"type": "string", "pattern": r.choice([
            r"^[a-z]{2,4}$", r"^\d+(\.\d\d)?$", r"^(yes|no|maybe)$", r"^[^\s\"]+$", r"^x|y$",
            r"[0-9]{3}", r"^\w+\\\w+$", r"^$"])}

    def schema(self, depth):
        r = self.random
        kind = r.randrange(8 if depth > 0 else 4)
        if kind == 0:
            return self.number()
        if kind == 1:
            return self.string()
        if kind == 2:
            return {"type": r.choice(["boolean", "null", ["boolean", "null"], ["integer", "string"]])}
        if kind == 3:
            return {"const": r.choice([1, "x", None, True, [1, {"a": 2}], 1.5])}
        if kind == 4:
            return {"type": "array", "items": self.schema(depth - 1),
                    **self.bounds(0, 4, "minItems", "maxItems")}
        if kind == 5:
            return {"anyOf": [self.schema(depth - 1) for _ in range(r.randint(1, 3))]}
        names = r.sample(["a", "ab", "abc", "b", "name with \"", "ü", "x/y~z"], r.randint(0, 5))
        made = {"type": "object", "properties": {n: self.schema(depth - 1) for n in names},
                "required": [n for n in names if r.random() < 0.5]}
        other = r.randrange(3)
        if other < 2:
            made["additionalProperties"] = False if other == 0 else {"type": "integer"}
        return made


def check_all(report, schemas, name, seed):
    ended = 0
    faults = []
    for schema, texts in zip(schemas, samples(schemas, TEXTS, seed)):
        if isinstance(texts, str):
            faults.append(f"{json.dumps(schema)} is refused: {texts}")
            continue
        ended += len(texts)
        if not texts:
            faults.append(f"{json.dumps(schema)}: no text ends")
        found = [fault(schema, text) for text in texts]
        faults += [f"{json.dumps(schema)}: {one}" for one in found if one is not None][:2]
    report.check(not faults, f"{ended} texts of {len(schemas)} {name} validate", "\n".join(faults[:20]))


def main():
    report = tap.Report()
    lines = [line.split("\t") for line in (HERE / "refused.txt").read_text("utf-8").splitlines()]
    for (text, words), answer in zip(lines, samples([json.loads(line[0]) for line in lines], 1)):
        report.check(isinstance(answer, str) and words in answer, f"refused: {text[:60]}", answer)
    if jsonschema is None:
        report.skip("texts validate", "python3-jsonschema is not here")
        return report.end()
    known = [json.loads(line) for line in (HERE / "schemas.txt").read_text("utf-8").splitlines()]
    check_all(report, known, "known schemas", 1)
    made = [Maker(seed).schema(3) for seed in range(RANDOM_SCHEMAS)]
    check_all(report, made, "random schemas", 2)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
