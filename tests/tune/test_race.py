"""The race of candidates: who is measured how often, and that the default always is."""

from __future__ import annotations

import math
import random
import time

import pytest

from vortex.tune.successive_halving import FINALISTS, TURNS, race, survivors


class Timed:
    """A candidate of a given speed, with some noise."""

    def __init__(self, us: float, chance: random.Random) -> None:
        self.us, self.chance = us, chance
        self.cold: list[float] = []
        self.warm = 0

    def turn(self, *, warm: bool) -> None:
        self.cold.append(self.us * self.chance.uniform(1.0, 1.02))
        self.warm += warm


def run(speeds: list[float], default: int, seconds: float = 60.0) -> tuple[list[Timed], list[int]]:
    chance = random.Random(1)
    made = [Timed(us, chance) for us in speeds]
    turns: list[int] = []
    race(dict(enumerate(made)), turns.append, default, 5, time.time() + seconds)
    return made, turns


@pytest.mark.parametrize("count", [1, 3, 4, 5, 30, 72])
def test_the_best_and_the_default_are_measured_to_the_end(count: int) -> None:
    speeds = [10.0 + i for i in range(count)]
    made, turns = run(speeds, default=count - 1)
    heats = sum(1 for _ in made[0].cold) // TURNS - 5
    assert len(made[0].cold) == len(made[-1].cold) == max(len(x.cold) for x in made)
    assert made[0].warm == made[-1].warm == 5 * TURNS
    assert all(len(x.cold) >= TURNS for x in made), "each has had a heat"
    assert len(turns) == sum(len(x.cold) for x in made)
    assert sum(x.warm > 0 for x in made) <= FINALISTS + 1
    assert heats <= math.ceil(math.log2(count)) if count > 1 else heats == 0


def test_turns_are_interleaved() -> None:
    _, turns = run([3.0, 1.0, 2.0, 9.0], default=3)
    assert turns == [0, 1, 2, 3] * (len(turns) // 4)


def test_when_time_is_up_each_has_run_once() -> None:
    made, _ = run([float(i + 1) for i in range(10)], default=0, seconds=-1.0)
    assert [len(x.cold) for x in made] == [1] * 10


def test_survivors() -> None:
    assert survivors({4: 9.0, 5: 1.0, 6: 3.0, 7: 2.0, 8: 8.0, 9: 4.0}, default=4) == [4, 5, 6, 7]
    assert survivors({1: 1.0, 2: 2.0}, default=1) == [1, 2]
