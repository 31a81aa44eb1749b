"""The page's logic under node, held to Python's own."""

from __future__ import annotations

import difflib
import json
import random
import shutil
import subprocess
from importlib.resources import files
from typing import Any

import pytest

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node")


def run(script: str, value: object) -> Any:
    """What ``script`` makes of ``value``, with the page's functions at hand."""
    ours = "\n".join(files("vortex.report").joinpath(name).read_text() for name in ("lines.js", "diff.js", "kin.js"))
    ask = f'{ours}\nconst value = JSON.parse(require("fs").readFileSync(0));\n'
    ask += f"console.log(JSON.stringify((() => {{ {script} }})()));"
    done = subprocess.run([str(NODE), "-e", ask], input=json.dumps(value), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def edited(draws: random.Random, text: list[int]) -> list[int]:
    made = list(text)
    for _ in range(draws.randrange(8)):
        at = draws.randrange(len(made) + 1)
        made[at : at + draws.randrange(4)] = [draws.randrange(12) for _ in range(draws.randrange(4))]
    return made


def test_differences_are_whole_and_about_as_short_as_pythons() -> None:
    draws = random.Random(0)
    texts = [[draws.randrange(12 if n % 2 else 500) for _ in range(draws.randrange(60))] for n in range(60)]
    pairs = [(a, edited(draws, a)) for a in texts] + [([], [1]), ([1], []), ([], [])]
    found = run("return value.map(([a, b]) => difference(a, b));", pairs)
    ours = theirs = 0
    for (a, b), rows in zip(pairs, found, strict=True):
        assert [x for x, _ in rows if x >= 0] == list(range(len(a)))
        assert [y for _, y in rows if y >= 0] == list(range(len(b)))
        ours += sum(x >= 0 and y >= 0 and a[x] == b[y] for x, y in rows)
        matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
        theirs += sum(block.size for block in matcher.get_matching_blocks())
    assert ours >= 0.97 * theirs


def test_large_texts_are_compared_at_once() -> None:
    draws = random.Random(1)
    a = [draws.randrange(4000) for _ in range(30000)]
    b = [x if draws.random() < 0.9 else draws.randrange(4000) for x in a]
    took = run(
        "const t = process.cpuUsage(); difference(value[0], value[1]); return process.cpuUsage(t).user / 1e6;", [a, b]
    )
    assert took < 3


def test_kin_is_of_the_same_expression_and_of_the_same_line() -> None:
    c = {
        "sources": [{"name": "f.py"}],
        "places": [
            {"source": 0, "line": n, "col": col, "end": col + 4, "call": ""} for n, col in ((3, 5), (3, 9), (4, 5))
        ],
    }
    script = """
      const key = (...ps) => ps.map((p) => keyOf(value, p));
      const line = [{ line: "f.py:3", span: "f.py:3", place: null }];
      return [kinship(key(0), key(0)), kinship(key(0), key(1)), kinship(key(0), key(2)), kinship(key(2, 1), line),
        kinship([], key(0)), kinOf(value, { ids: [0, 1, 2], places: [[0], [1, 2], []] }, key(2)),
        kinOf(value, { ids: [0, 1, 2, 3, 4], source: 0 }, key(2)),
        kinOf(value, { ids: [0, 1], places: [[2], [1]] }, key(0))];
    """
    assert run(script, c) == [2, 1, 0, 2, 0, [1], [3], [1]], "where none is of the expression, those of the line"


@pytest.mark.parametrize(
    "line",
    [
        '    %kq = page.load() {buffer = "kq"} <in = "inline"> : fp8_e4m3[S, 16, 128]',
        'ld.global.v4.u32 {%r1, %r2}, [%rd5]; // "open',
        "x = T.float32(1.5e-3) # note </script>",
        "",
    ],
)
def test_a_line_in_colours_is_the_line(line: str) -> None:
    runs = run("return tokens(value);", line)
    assert "".join(text for _, text in runs) == line
