#!/usr/bin/env python3
"""Templates render as Jinja2 renders them: expressions.txt (one a line), statements.txt (between lines
of "=====") and random white space around tags, all with the variables of variables.json."""
import datetime
import json
import pathlib
import random
import sys
import tempfile
import warnings

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import tap

try:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
except ImportError:
    jinja2 = None

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)
RANDOM_TEMPLATES = 150


def environment():
    """The environment of chat templates, in which lists and dicts may be changed."""

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            call = self.call_method("_support")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _support(self, caller):
            return caller()

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    made = jinja2.sandbox.SandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols, jinja2.ext.do])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = NOW.strftime
    return made


def expected(env, source, variables):
    """The text, or None for an error."""
    try:
        return env.from_string(source).render(**json.loads(variables.read_text()))
    except Exception:  # whatever goes wrong in a template is an error of it
        return None


def found(source, variables, folder):
    """As expected(); a crash is neither a text nor an error."""
    path = folder / "template.jinja"
    path.write_text(source, newline="")
    try:
        text = tap.consort("render", path, "--input", variables, "--now", NOW.isoformat())
    except tap.Failure as failure:
        return None if failure.code == 1 else failure, str(failure)
    return text.decode(), ""


def sign(rng, signs):
    return rng.choice(["", "", *signs])


def random_template(rng, depth=0):
    def text():
        return "".join(rng.choice(["a", "b ", " ", "\n", "\n\n", "\t", " \n ", "\r\n", "{", "%"])
                       for _ in range(rng.randint(0, 4)))

    def tag(inner):
        return f"{{%{sign(rng, '-+')} {inner}{rng.choice([' ', chr(10)])}{sign(rng, '-+')}%}}"

    parts = []
    for _ in range(rng.randint(1, 5)):
        kind = rng.randint(0, 6)
        if kind < 2 or depth > 2:
            parts.append(text())
        elif kind == 2:
            parts.append(f"{{{{{sign(rng, '-')} x {sign(rng, '-')}}}}}")
        elif kind == 3:
            parts.append(f"{{#{sign(rng, '-+')} c {sign(rng, '-+')}#}}")
        elif kind == 4:
            parts.append(tag("raw") + text() + "{{" + tag("endraw"))
        else:
            begin, end = rng.choice([("if x", "endif"), ("for i in [1, 2]", "endfor")])
            parts.append(tag(begin) + random_template(rng, depth + 1) + tag(end))
    return "".join(parts)


def main():
    report = tap.Report()
    if jinja2 is None:
        report.skip("templates against Jinja2", "python3-jinja2 is not installed")
        return report.end()
    warnings.simplefilter("ignore")
    rng = random.Random(1)
    expressions = (HERE / "expressions.txt").read_text().splitlines()
    statements = (HERE / "statements.txt").read_text()[:-1].split("\n=====\n")
    suites = {
        "expression": ["{{ " + line + " }}" for line in expressions],
        "statement": statements,
        "white space": [random_template(rng) for _ in range(RANDOM_TEMPLATES)],
    }
    env = environment()
    variables = HERE / "variables.json"
    with tempfile.TemporaryDirectory() as folder:
        for name, sources in suites.items():
            for number, source in enumerate(sources, 1):
                want = expected(env, source, variables)
                got, problem = found(source, variables, pathlib.Path(folder))
                report.check(got == want, f"{name} {number}",
                             f"{source!r}\nexpected {want!r}\nfound {got!r} {problem}")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
