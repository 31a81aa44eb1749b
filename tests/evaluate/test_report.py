"""Tables for a terminal, and the report: one file, well-formed, that reaches for nothing and believes no text."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.made_up import DENSE, SETTINGS, costs, evaluation, outcome, scores
from tests.html_reader import Reader
from vortex.cli.eval_tables import print_tables
from vortex.errors import VortexError
from vortex.evaluate import plots
from vortex.evaluate.outcomes import Lane, Outcome
from vortex.evaluate.report import html, write_html
from vortex.evaluate.statistics import Failure, Summary, summarise
from vortex.evaluate.tables import FEW, few, number, pareto, share, tables

EVIL = "x.py:</script><b onclick=alert(1)>&\"'"


@pytest.fixture(scope="module")
def summary() -> Summary:
    flows = ("quest", "mass", EVIL)
    failed = [Failure("broken", "error[VX1005]: <no>"), Failure("mass", "out of memory", 64, "needle", 8192)]
    return summarise(evaluation(flows), SETTINGS, costs(flows), failed)


def test_the_report_is_well_formed(summary: Summary) -> None:
    text = html(summary)
    reader = Reader(text)
    assert not reader.open
    assert text.startswith("<!doctype html>")
    assert len([a for a in reader.of("svg") if a.get("class") == "heat"]) == 5 * 3, "no map of dense and random"
    assert len(reader.of("svg")) == 5 * 3 + 2
    assert len(reader.of("table")) == 5


def test_the_report_reaches_for_nothing(summary: Summary) -> None:
    text = html(summary)
    assert not re.search(r"https?:|//[\w.]+\.\w+/|url\(|@import|<link|<img|<iframe|\bfetch\(|XMLHttp", text)
    for _, attrs in Reader(text).seen:
        assert not {"src", "href", "srcset", "action"} & attrs.keys()
        assert not [name for name in attrs if name.startswith("on")]


def test_texts_are_escaped(summary: Summary) -> None:
    text = html(summary)
    assert "<b onclick" not in text
    assert "&lt;b onclick=alert(1)&gt;" in text
    assert "error[VX1005]: &lt;no&gt;" in text
    assert text.count("</script>") == 2


def test_the_summary_is_in_the_report(summary: Summary) -> None:
    [data] = re.findall(r'<script type="application/json" id="summary">(.*?)</script>', html(summary), re.DOTALL)
    assert json.loads(data) == json.loads(json.dumps(summary.as_json()))


def test_a_large_report_is_small() -> None:
    """All flows of the library on a model of 32 layers and 8 KV heads."""
    random, lanes = np.random.default_rng(0), [Lane(f"flow_{n}", b) for n in range(20) for b in (4, 16, 64)]
    every = [
        Outcome(task, length, i, lane, "", 1.0, -1.0, 1.0, random.random((32, 8)), random.random((32, 8)), 7.0)
        for lane in (DENSE, *lanes)
        for task in ("a", "b", "c", "d")
        for length in (4096, 8192)
        for i in range(2)
    ]
    assert len(html(summarise(every, replace(SETTINGS, layers=()))).encode()) < 2_000_000


def test_it_is_written_or_refused(summary: Summary, tmp_path: Path) -> None:
    write_html(summary, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text("utf-8") == html(summary)
    with pytest.raises(VortexError, match="cannot be written"):
        write_html(summary, tmp_path / "nowhere" / "report.html")


def test_reports_of_next_to_nothing() -> None:
    nan = outcome(Lane("quest", 4), 0, 0.0, logprob=math.nan, mass=math.nan, error=math.nan, recall=math.nan)
    for outcomes in ([], [outcome(DENSE, 0)], [nan], [outcome(DENSE, 0, 0.0), nan]):
        made = summarise(outcomes, SETTINGS, costs())
        assert not Reader(html(made)).open
        print_tables(made)


def test_labels_stand_apart() -> None:
    for wanted in ([5.0] * 12, [10.0, 11, 200, 330, 333, 333], [400.0] * 3, [1.0]):
        placed = plots._apart(wanted, 334.0)
        assert all(b - a >= plots.LINE - 1e-9 for a, b in pairwise(placed))
        assert max(placed) <= 334


def test_budgets_cover_nothing(summary: Summary) -> None:
    svg = plots.pareto(summary, lambda c: c.bytes / 1e6, "MB", "t")
    texts = [tuple(map(float, at)) for at in re.findall(r'class="budget" x="([\d.]+)" y="([\d.]+)"', svg)]
    assert texts
    for n, (x, y) in enumerate(texts):
        assert all(abs(x - a) > 6 or abs(y - b) > 10 for a, b in texts[:n])


def test_where_marks_lie() -> None:
    """The axis of answers is linear: 0.5 halfway down; the cheaper lane is left."""
    every = scores(DENSE, [1, 1]) + scores(Lane("quest", 4), [1, 0])
    summary = summarise(every, SETTINGS, {k: v for k, v in costs().items() if str(k) in ("dense", "quest@4")})
    svg = plots.pareto(summary, lambda c: c.bytes, "B", "t")
    quest = svg[svg.index('<g class="c0">') :]
    [(x, y)] = re.findall(r'class="line" d="M([\d.]+) ([\d.]+)"', quest)
    assert float(y) == plots.TOP + 160
    assert plots.LEFT < float(x) < plots.LEFT + plots.PLOT / 4


@pytest.mark.parametrize(
    ("costs", "ticks"),
    [
        ([8.4, 4300], [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]),
        ([1, 99], [1, 2, 5, 10, 20, 50, 100]),
        ([1, 1e5], [1, 10, 100, 1000, 1e4, 1e5]),
        ([101, 118], [100, 110, 120, 130]),
        ([40.0], [36, 38, 40, 42, 44]),
    ],
)
def test_ticks_are_round_and_apart(costs: list[float], ticks: list[float]) -> None:
    low, high = plots._decades(costs)
    assert plots._ticks(low, high) == pytest.approx(ticks)
    places = [plots.PLOT * (math.log10(t) - low) / (high - low) for t in ticks]
    assert all(b - a > 6.4 * len(f"{t:g}") for (a, b), t in zip(pairwise(places), ticks, strict=False))


NODE = shutil.which("node")
DOCUMENT = """
const cell = (text) => ({ textContent: text }), row = (...texts) => ({ cells: texts.map(cell) });
const head = (kind) => {
  const at = {};
  return {
    firstElementChild: { addEventListener: (_, f) => { click.push(f); } },
    classList: { contains: (c) => c === kind },
    hasAttribute: (n) => n in at, getAttribute: (n) => at[n] ?? null,
    setAttribute: (n, x) => { at[n] = x; }, removeAttribute: (n) => { delete at[n]; },
  };
};
const click = [], moved = {}, shown = { style: {} };
const body = { rows: [row("b", "<.001"), row("a", "-"), row("c", ".5 L0H1")], append(...rows) { this.rows = rows; } };
const table = { tHead: { rows: [{ cells: [head(""), head("n")] }] }, tBodies: [body] };
const map = {
  dataset: { mass: "0.10 0.20 0.30 0.40", layers: "3 7" },
  addEventListener: (name, f) => { moved[name] = f; },
  getBoundingClientRect: () => ({ left: 10, top: 10, width: 20, height: 20 }),
};
globalThis.document = {
  querySelectorAll: (what) => what === "svg.heat" ? [map] : [table], getElementById: () => shown,
};
"""
ASKED = """
const names = () => body.rows.map((r) => r.cells[0].textContent).join(""), told = [];
for (const column of [0, 0, 1, 1]) { click[column](); told.push(names()); }
moved.pointermove({ clientX: 25, clientY: 12 });
console.log(JSON.stringify([...told, shown.textContent]));
"""


@pytest.mark.skipif(NODE is None, reason="there is no node")
def test_the_script_sorts_tables_and_tells_cells() -> None:
    """A click on a column sorts it: names up and then down, numbers down and then up, what is no number last."""
    script = files("vortex.evaluate").joinpath("report.js").read_text("utf-8")
    ran = subprocess.run([NODE or "", "-"], input=DOCUMENT + script + ASKED, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == ["abc", "cba", "cba", "bca", "layer 7, head 0: 0.30"]


def test_heat_maps_have_every_cell_once() -> None:
    mass = np.array([[0.0, 1.0], [0.5, math.nan], [0.51, 0.2]])
    svg = plots.heat_map(mass, [0, 3, 5], "t")
    assert sorted(re.findall(r"M(\d) (\d)h1", svg)) == sorted((str(a), str(b)) for a in range(3) for b in range(2))
    assert 'data-mass="0.00 1.00 0.50 nan 0.51 0.20"' in svg
    assert 'data-layers="0 3 5"' in svg
    assert 'class="q0"' in svg and 'class="q23"' in svg and 'class="qn"' in svg


def test_colours_run_from_dark_to_light() -> None:
    assert (plots.colour(0), plots.colour(0.5), plots.colour(1)) == ("#440154", "#21918c", "#fde725")
    light = [sum(int(plots.colour(n / 23)[i : i + 2], 16) * w for i, w in ((1, 2), (3, 7), (5, 1))) for n in range(24)]
    assert light == sorted(light)


def test_the_terminal_has_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    every = scores(DENSE, [1] * 8) + scores(Lane("quest", 4), [1, 1, 0, 0, 0, 0, 0, 0], mass=0.5)
    every += scores(DENSE, [0] * 4, task="hard")
    print_tables(summarise(every, SETTINGS, costs(), [Failure("broken", "no such flow")]))
    out = capsys.readouterr().out
    [row] = [line for line in out.splitlines() if line.startswith("quest")][:1]
    assert row.split()[:11] == ["quest", "4", ".25", "±", ".14", ".25", "0/6", ".031", ".50", "L0H0", "58.4"]
    assert "Left out, for the model cannot do them densely: hard at 4096." in out
    assert "hard 4K *" in out
    assert "no such flow" in out


def test_tables_have_as_many_cells_as_heads(summary: Summary) -> None:
    for t in tables(summary):
        assert {len(row) for row in t.rows} == {len(t.head)}
    assert "frequent_words at 4096" in pareto(summary).note


@pytest.mark.parametrize(
    ("x", "text"), [(0.0, ".00"), (1.0, "1.00"), (0.876, ".88"), (math.nan, "-"), (-0.5, "-.50"), (0.999, "1.00")]
)
def test_shares(x: float, text: str) -> None:
    assert share(x) == text


def test_numbers() -> None:
    assert (number(-0.0001, 2), number(math.nan, 2), number(12.345, 1)) == ("0.00", "-", "12.3")


@pytest.mark.parametrize(
    ("n", "says"),
    [
        (0, ""),
        (1, " Only 1 prompt was counted: shares differ by 1.00 with a single prompt."),
        (8, " Only 8 prompts were counted: shares differ by .12 with a single prompt."),
        (FEW - 1, " Only 99 prompts were counted: shares differ by .01 with a single prompt."),
        (FEW, ""),
    ],
)
def test_few_prompts_are_said(n: int, says: str) -> None:
    assert few(n, "prompt", "was counted", "were counted") == says


def test_the_note_says_how_few_prompts_there_were() -> None:
    made = summarise(evaluation(("quest",)), SETTINGS, costs(("quest",)))
    assert (n := max(t.figures.prompts for t in made.totals)) < FEW
    assert f"Only {n} prompts were counted" in pareto(made).note
