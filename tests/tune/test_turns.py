"""Building and measuring in turns: any budget leaves something measured, and nothing is built in vain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tune.records import record
from vortex.schedules.space import Space
from vortex.tune import build, here
from vortex.tune.build import Job
from vortex.tune.search import propose


@dataclass
class Clock:
    """Time that passes when something is done."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Turns:
    """A tuner of one kernel with ``space`` points, of which each takes a second to build."""

    clock: Clock
    space: int
    target: Any = field(default_factory=lambda: SimpleNamespace(name="cpu"))
    spec: Any = field(default_factory=lambda: SimpleNamespace(block_size=16))
    most: int = 24
    known: list[Any] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    built: int = 0

    def bundle(self, told: object, most: int, until: float) -> int:
        self.asked.append(most)
        for _ in range(most):
            if self.built < self.space and self.clock.now < until:
                self.clock.now += 1
                self.built += 1
        return self.built


@contextmanager
def silent(what: str) -> Iterator[Any]:
    yield lambda done, total: None


def tuned(monkeypatch: pytest.MonkeyPatch, seconds: float, space: int = 1000) -> tuple[Turns, list[float], int]:
    """The turns of a budget, the seconds that each was given to measure, and how many records there are."""
    clock = Clock()
    turns, given = Turns(clock, space), list[float]()

    class Session:
        """A measurement of a second a candidate."""

        def __init__(self, bundle: int, keep: Any, said: Any, limit: float, *rest: Any) -> None:
            self.bundle, self.keep, self.known = bundle, keep, rest[2]
            given.append(limit)

        def run(self) -> None:
            for i in range(len(self.known), self.bundle):
                clock.now += 1
                self.keep(record(config={"lanes": i}))

    monkeypatch.setattr(here, "time", clock)
    monkeypatch.setattr(here, "Session", Session)
    kept: list[Any] = []
    made = here.tune_here(turns, kept.append, silent, print, seconds, 5)  # type: ignore[arg-type]
    assert kept == made
    return turns, given, len(made)


def test_turns_grow_to_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, given, made = tuned(monkeypatch, 1000.0, space=90)
    assert turns.asked == [2, 4, 8, 16, 24, 24, 24, 24], "the last finds nothing new"
    assert made == 90 and len(turns.known) == 90
    assert given[:2] == [998.0, 992.0]


@pytest.mark.parametrize("seconds", [0.0, 1.0, 2.0])
def test_the_first_turn_is_measured_whatever_the_budget(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    turns, given, made = tuned(monkeypatch, seconds)
    assert (turns.asked, made, given) == ([2], 2, [here.LEAST])


def test_what_is_built_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, _, made = tuned(monkeypatch, 20.0)
    assert made == turns.built
    # the first turn takes 4 s, of which 2 to measure, the second 8 and 4: the third builds until 16
    assert turns.asked == [2, 4, 8] and turns.clock.now <= 20.0


def job(kernel: str, i: int) -> Job:
    return Job("program", "cpu", kernel, "base", f"{kernel}{i}", (), (f"{kernel}{i}",))


def test_the_first_libraries_of_all_kernels_come_first() -> None:
    work = [job("select", 0), job("select", 1), job("select", 2), job("attend", 0), job("attend", 1)]
    assert [j.out for j in build._in_turns(work)] == ["select0", "attend0", "select1", "attend1", "select2"]


def test_none_is_begun_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def built(j: Job) -> dict[str, str]:
        clock.now += 1
        return {}

    monkeypatch.setattr(build, "time", clock)
    monkeypatch.setattr(build, "build_group", built)
    work = [job("select", i) for i in range(5)]
    assert [j.out for j, _ in build._run(work, 1, 2.5)] == ["select0", "select1", "select2"]
    assert time.monotonic() > 0, "the clock of others is not touched"


def test_all_of_a_small_space_come_by_the_model() -> None:
    space = Space("t@1", tuple({"a": a, "b": 0} for a in range(5)), {"a": 0, "b": 0})
    found = propose(space, 24, lambda c: -c["a"])
    assert [c["a"] for c in found] == [0, 4, 3, 2, 1], "after the default"
