"""Timing candidates against each other: few repeats for all of them, many for the best.

A heat is a few turns, in each of which every candidate that is left runs once: what drifts, drifts for all. After a
heat the slower half is out. The last rounds are for the best few and for the default, which is never out: it is what
the others are compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

TURNS = 3
"""Of a heat, and of each of the last rounds."""

FINALISTS = 3
"""Candidates, beside the default, that the last rounds are for."""


class Runner(Protocol):
    """A candidate that can be timed."""

    @property
    def cold(self) -> list[float]:
        """Its times so far, of the kind that choices are made by."""

    def turn(self, *, warm: bool) -> None:
        """Take its time once more; with ``warm`` of other kinds too."""


def race(
    runners: Mapping[int, Runner], before: Callable[[int], None], default: int, rounds: int, deadline: float
) -> None:
    """Run all until ``deadline`` (a ``time.time()``) or the end; ``before`` hears whose turn it is.

    Every one has run once even if the time is up at once.
    """
    alive = list(runners)
    while alive:
        final = len(alive) <= FINALISTS + 1
        for _ in range(TURNS * (rounds if final else 1)):
            for i in alive:
                if runners[i].cold and time.time() > deadline:
                    return
                before(i)
                runners[i].turn(warm=final)
        if final:
            return
        alive = survivors({i: min(runners[i].cold) for i in alive}, default)


def survivors(times: Mapping[int, float], default: int) -> list[int]:
    """Who goes on after a heat: the faster half, at least ``FINALISTS``, and the default; in the order given."""
    order = sorted(times, key=lambda i: times[i])
    kept = {*order[: max(FINALISTS, len(order) // 2)], default}
    return [i for i in times if i in kept]
