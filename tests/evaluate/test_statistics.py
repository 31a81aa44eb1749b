"""Summaries of small cases, by hand."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.made_up import DENSE, HEADS, LAYERS, SETTINGS, costs, evaluation, outcome, scores
from vortex.evaluate.cost import Cost
from vortex.evaluate.outcomes import Lane
from vortex.evaluate.statistics import SCHEMA, Failure, Pairs, sign_test, summarise

ROOT = Path(__file__).resolve().parents[2]
QUEST = Lane("quest", 4)


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 5, 0.0625),
        (0, 6, 0.03125),
        (1, 9, 22 / 1024),
        (9, 1, 22 / 1024),
        (4, 5, 1.0),
        (3, 3, 1.0),
        (2, 10, 158 / 4096),
    ],
)
def test_sign_test(better: int, worse: int, p: float) -> None:
    assert sign_test(better, worse) == pytest.approx(p)


def test_answers_and_pairs() -> None:
    every = scores(DENSE, [1, 1, 1, 0, 0.5]) + scores(QUEST, [1, 0, 0.5, 1, 0.5])
    total = summarise(every, SETTINGS).total("quest", 4)
    assert total is not None
    f = total.figures
    assert (f.prompts, f.answers, f.dense) == (5, 0.6, 0.7)
    assert f.of_dense == pytest.approx(6 / 7)
    assert f.pairs == Pairs(both=1, only_dense=2, only_this=1, neither=1, better=1, worse=2)
    assert f.pairs.p == 1.0
    assert f.stderr == pytest.approx(math.sqrt((3.5 / 7 - (4 / 7) ** 2) / 7)), "of 1 0 .5 1 .5 and one right, one wrong"


def test_few_prompts_are_not_certain() -> None:
    total = summarise(scores(DENSE, [1] * 4) + scores(QUEST, [0]), SETTINGS)
    dense, quest = (t.figures.stderr for t in total.totals)
    assert dense == pytest.approx(math.sqrt(5 / 36 / 6))
    assert quest == pytest.approx(math.sqrt(2 / 9 / 3))


def test_only_prompts_of_both_are_compared() -> None:
    every = scores(DENSE, [1, 0, 1, 1]) + scores(QUEST, [0, 0])
    summary = summarise(every, SETTINGS)
    total = summary.total("quest", 4)
    assert total is not None
    assert (total.figures.prompts, total.figures.dense, total.missing) == (2, 0.5, 2)


def test_a_prompt_counts_once() -> None:
    every = [outcome(DENSE, 0, 1.0), outcome(QUEST, 0, 0.0), outcome(QUEST, 0, 1.0)]
    total = summarise(every, SETTINGS).total("quest", 4)
    assert total is not None
    assert (total.figures.prompts, total.figures.answers) == (1, 1.0)


def test_totals_are_means_over_cells() -> None:
    every = scores(DENSE, [1, 1], task="a") + scores(DENSE, [1, 1, 1, 1], task="b")
    every += scores(QUEST, [0, 1], task="a", logprob=-2.0) + scores(QUEST, [1, 1, 1, 1], task="b", logprob=-1.5)
    total = summarise(every, SETTINGS).total("quest", 4)
    assert total is not None
    assert (total.figures.prompts, total.figures.answers) == (6, 0.75)
    assert total.figures.logprob_difference == -0.75
    assert (total.figures.pairs.both, total.figures.pairs.only_dense) == (5, 1)


def test_what_the_model_cannot_do_is_left_out() -> None:
    every = scores(DENSE, [1, 1, 1]) + scores(DENSE, [1, 0, 0, 0], task="hard")
    every += scores(QUEST, [1, 1, 0]) + scores(QUEST, [0, 0, 0, 0], task="hard")
    summary = summarise(every, SETTINGS)
    assert [(t.name, t.informative) for t in summary.tasks] == [("needle", True), ("hard", False)]
    total = summary.total("quest", 4)
    assert total is not None
    assert (total.figures.answers, total.figures.prompts) == (pytest.approx(2 / 3), 3)
    assert {c.task for c in summary.cells} == {"needle", "hard"}, "it is still shown"


def test_a_task_without_answers_counts_for_its_log_probability() -> None:
    every = scores(DENSE, [1, 1], logprob=-1.0) + scores(DENSE, [math.nan], task="perplexity", logprob=-3.0)
    every += scores(QUEST, [1, 0], logprob=-1.0) + scores(QUEST, [math.nan], task="perplexity", logprob=-4.0)
    summary = summarise(every, SETTINGS)
    assert [(t.scored, t.informative) for t in summary.tasks] == [(True, True), (False, True)]
    total = summary.total("quest", 4)
    assert total is not None
    assert (total.figures.answers, total.figures.logprob_difference) == (0.5, -0.5)
    alone = summarise([o for o in every if o.task == "perplexity"], SETTINGS)
    [verdict] = alone.verdicts()
    assert verdict["answers"] is None


def test_without_dense_answers_stand_alone() -> None:
    summary = summarise(scores(QUEST, [1, 0]), SETTINGS)
    total = summary.total("quest", 4)
    assert total is not None
    assert total.figures.answers == 0.5
    assert math.isnan(total.figures.dense)
    assert math.isnan(total.figures.of_dense)


def test_worst_head_is_of_the_mean_over_prompts() -> None:
    first, second = np.ones((LAYERS, HEADS)), np.ones((LAYERS, HEADS))
    first[0, 0] = 0.5  # worst of one prompt
    first[2, 1] = second[2, 1] = 0.7  # worst of both
    every = [outcome(DENSE, 0), outcome(DENSE, 1), outcome(QUEST, 0, mass=first), outcome(QUEST, 1, mass=second)]
    made = summarise(every, SETTINGS).as_json()
    lane = next(x for x in made["lanes"] if x["rule"] == "quest")  # type: ignore[attr-defined]
    assert lane["worst_head"] == {"layer": 4, "head": 1, "mass": 0.7}, "numbers of the model's layers"
    assert lane["mass"] == pytest.approx((6 + 0.75 + 0.7) / 8)


def test_nan_is_counted_and_left_out() -> None:
    broken = outcome(QUEST, 0, 0.0, logprob=math.nan, mass=np.full((LAYERS, HEADS), math.nan), error=math.nan)
    every = [*scores(DENSE, [1, 1]), broken, outcome(QUEST, 1, 1.0, logprob=-2.0, mass=0.5, error=0.25)]
    summary = summarise(every, SETTINGS)
    total = summary.total("quest", 4)
    assert total is not None
    f = total.figures
    assert (f.invalid, f.logprob, f.error, f.worst[2], f.answers) == (1, -2.0, 0.25, 0.5, 0.5)
    nothing = summarise([*scores(DENSE, [1]), broken], SETTINGS)
    [verdict] = nothing.verdicts()
    assert verdict["worst_head"] is None
    json.dumps(nothing.as_json(), allow_nan=False)


def test_the_front() -> None:
    lanes = {Lane("a", 4): (0.5, 10), Lane("a", 16): (0.9, 20), Lane("b", 4): (0.5, 15), Lane("oracle", 4): (1.0, 5)}
    every = scores(DENSE, [1] * 10)
    for lane, (answers, _) in lanes.items():
        every += scores(lane, [1.0] * round(10 * answers) + [0.0] * round(10 - 10 * answers))
    cost = {lane: Cost(size, 100 - size) for lane, (_, size) in lanes.items()} | {DENSE: Cost(100, 100)}
    summary = summarise(every, SETTINGS, cost)
    assert {str(t.lane) for t in summary.totals if t.front_bytes} == {"dense", "a@4", "a@16"}
    assert {str(t.lane) for t in summary.totals if t.front_us} == {"dense", "a@16"}


def test_order_of_lanes() -> None:
    shuffled = [outcome(Lane(r, b), 0) for r, b in (("z", 16), ("recent", 4), ("a", 4), ("z", 4), ("dense", 0))]
    assert [str(t.lane) for t in summarise(shuffled, SETTINGS).totals] == ["dense", "recent@4", "z@4", "z@16", "a@4"]


def test_verdicts_are_of_flows() -> None:
    verdicts = summarise(evaluation(), SETTINGS, costs()).verdicts()
    assert [(v["flow"], v["budget"]) for v in verdicts] == [(f, b) for f in ("quest", "mass") for b in (4, 16, 64)]
    for v in verdicts:
        assert set(v) == {"flow", "budget", "answers", "dense", "bytes", "microseconds", "worst_head"}
        assert "\n" not in json.dumps(v, allow_nan=False)


def test_nothing_makes_a_summary_of_nothing() -> None:
    made = summarise([], SETTINGS).as_json()
    assert made["lanes"] == made["cells"] == made["tasks"] == made["verdicts"] == []


FIGURES = {
    "prompts": int, "answers": float, "stderr": float, "dense": float, "of_dense": float, "both": int,
    "only_dense": int, "only_this": int, "neither": int, "better": int, "worse": int, "p": float, "logprob": float,
    "logprob_difference": float, "recall": float, "mass": float, "worst_head": dict, "error": float, "pages": float,
    "invalid": int,
}  # fmt: skip
LISTS = {
    "tasks": {"task": str, "length": int, "prompts": int, "dense": float, "logprob": float, "scored": bool,
              "informative": bool},
    "lanes": {"rule": str, "budget": int, "baseline": bool, **FIGURES, "missing": int, "bytes": float,
              "microseconds": float, "kernels": dict, "front_bytes": bool, "front_microseconds": bool,
              "mass_by_layer_and_head": list},
    "cells": {"rule": str, "budget": int, "task": str, "length": int, **FIGURES},
    "verdicts": {"flow": str, "budget": int, "answers": float, "dense": float, "bytes": float, "microseconds": float,
                 "worst_head": float},
    "failures": {"rule": str, "message": str, "budget": int, "task": str, "length": int},
}  # fmt: skip
SET = {"model", "seed", "device", "backend", "page_size", "sink", "recent", "layers", "windowed", "least_dense",
       "workload", "command", "versions"}  # fmt: skip


def test_the_schema() -> None:
    """A key that goes, or changes its type, asks for a new version and other words in docs/eval.md."""
    assert SCHEMA == 1
    summary = summarise(evaluation(), SETTINGS, costs(), [Failure("broken", "VX2001", 4)])
    made = json.loads(json.dumps(summary.as_json(), allow_nan=False))
    assert list(made) == ["schema", "settings", "tasks", "lanes", "cells", "verdicts", "failures"]
    assert made["schema"] == SCHEMA
    assert set(made["settings"]) == SET
    for name, keys in LISTS.items():
        assert made[name], name
        for row in made[name]:
            assert set(row) == set(keys), name
            for key, kind in keys.items():
                allowed = (float, int, type(None)) if kind is float else (kind, type(None))
                assert isinstance(row[key], allowed), (name, key, row[key])
    assert np.shape(made["lanes"][0]["mass_by_layer_and_head"]) == (LAYERS, HEADS)


def test_the_schema_is_documented() -> None:
    text = (ROOT / "docs" / "eval.md").read_text()
    named = set(re.findall(r"`(\w+)`", text[text.index("## The JSON") :]))
    assert SET | set(LISTS) | {k for keys in LISTS.values() for k in keys} <= named


def test_no_torch_is_needed() -> None:
    code = "import sys, vortex.evaluate.statistics; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
