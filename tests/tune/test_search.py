"""The search replays what an H200 measured: few points, close to the best; and it knows its own limits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vortex.schedules.space import Config, Space, freeze
from vortex.tune.cost import Work, attend_seconds
from vortex.tune.search import SHARE, SMALL, Point, budget_of, propose, search
from vortex.tune.silicon import SILICON, SPEEDS

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results" / "h200" / "attend_kernels.json"
DEFAULT = {"warps": 4, "stages": 3, "tile": 16, "overlap": 0, "planned": 1, "splits": 1}


def measured() -> dict[str, dict[Point, float]]:
    """Microseconds of each configuration of ``attend`` by batch, where at least 64 configurations were measured."""
    found: dict[str, dict[Point, float]] = {}
    data = json.loads(RESULTS.read_text())
    for row in data["rows"]:
        about = data["kernels"][row["kernel"]]
        if about["main"] and re.search(r"B=\d+ n=\d+ k=\d+", row["batch"]):
            config = {n: about["knobs"][n] for n in DEFAULT if n != "splits"} | {"splits": row["splits"]}
            found.setdefault(row["batch"], {})[freeze(config)] = row["us"]
    return {b: t for b, t in found.items() if len(t) >= SMALL}


TIMES = measured()


def predictor(batch: str) -> Callable[[Config], float]:
    rows, tokens, kept = map(int, re.findall(r"=(\d+)", batch))
    work = Work(rows * 8, min(kept, tokens // 16), 16 * 128 * 2 * 2)
    return lambda c: attend_seconds(c, work, 16, SILICON["sm_90a"], SPEEDS["sm_90a"])


@pytest.mark.parametrize("batch", TIMES)
def test_a_sixth_of_the_space_is_enough(batch: str) -> None:
    times = TIMES[batch]
    space = Space("cuda.attend@0", tuple(map(dict, times)), DEFAULT)
    asked: list[Point] = []

    def measure(config: Config) -> float:
        asked.append(freeze(config))
        return times[freeze(config)]

    found = search(space, measure, predictor(batch))
    assert len(asked) == len(set(asked)) == len(found) <= SHARE * len(space)
    assert freeze(DEFAULT) in found
    assert min(x for x in found.values() if x is not None) <= 1.03 * min(times.values())


def test_there_are_shapes_to_replay() -> None:
    assert len(TIMES) >= 10


def test_small_spaces_are_enumerated_and_failures_survived() -> None:
    space = Space("t@1", tuple({"a": a, "b": b} for a in range(5) for b in range(4)), {"a": 0, "b": 0})
    found = search(space, lambda c: None if c["a"] == 3 else float(c["a"] + c["b"]))
    assert len(found) == 20 == budget_of(20)
    large = Space("t@1", tuple({"a": a, "b": b} for a in range(20) for b in range(20)), {"a": 0, "b": 0})
    found = search(large, lambda c: None if c["a"] % 2 else 1.0 + abs(c["a"] - 8) + abs(c["b"] - 8))
    assert len(found) == budget_of(400) == 60
    assert search(large, lambda c: None) != {}, "nothing works: it ends all the same"


def test_proposals() -> None:
    space = Space("t@1", tuple({"a": a, "b": b} for a in range(20) for b in range(20)), {"a": 0, "b": 0})
    first = propose(space, 10, lambda c: abs(c["a"] - 5) + abs(c["b"] - 5))
    assert len(first) == 10 and first[0] == space.default
    assert {"a": 5, "b": 5} in first
    known = {freeze({"a": 15, "b": 15}): 1.0, freeze(first[1]): 2.0}
    then = propose(space, 10, None, known)
    assert {"a": 15, "b": 16} in then and {"a": 14, "b": 15} in then
    assert first[1] not in then
    assert propose(space, 400) == list(space), "the default is the first of all"
    assert len(propose(space, 399, None, known)) == 398, "two are known"
