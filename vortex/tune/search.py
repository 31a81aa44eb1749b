"""Which points of a space to measure: all of a small one, of a large one those that a model and its best suggest."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from vortex.schedules.space import Config, Space, freeze

Point = tuple[tuple[str, int], ...]
Predict = Callable[[Config], float]
"""Seconds, or anything that ranks; only the order counts."""
Measured = Callable[[Config], float | None]
"""A time, or None for a configuration that fails."""

SMALL = 64
"""A space with fewer points is enumerated."""
SHARE = 0.15
"""Of a larger one this share is measured."""


def budget_of(points: int) -> int:
    """How many points of a space may be measured."""
    return points if points < SMALL else int(points * SHARE)


def search(
    space: Space, measured: Measured, predict: Predict | None = None, most: int | None = None, seed: int = 0
) -> dict[Point, float | None]:
    """Measure up to ``most`` points (:func:`budget_of` the space); what each took.

    A third goes to the default and what the model thinks best, spread over the values of each knob; a few to random
    points of the better half; the rest to neighbours of the best so far, so that a wrong model costs its share only.
    """
    most = budget_of(len(space)) if most is None else most
    found: dict[Point, float | None] = {}

    def take(configs: Iterable[Config], limit: int) -> None:
        for c in configs:
            if len(found) >= min(limit, most):
                return
            if freeze(c) not in found:
                found[freeze(c)] = measured(c)

    ranked = rank(space, predict, seed)
    take([space.default], 1)
    take(ranked, most if most >= len(space) else max(2, most // 3))
    better = ranked[: max(1, len(ranked) // 2)]
    chance = random.Random(seed)
    take(chance.sample(better, len(better)), max(3, most * 2 // 5))
    order = {freeze(c): i for i, c in enumerate(ranked)}
    while len(found) < most:
        known = sorted((us, p) for p, us in found.items() if us is not None)
        before = len(found)
        for _, point in known:
            near = [c for c in space.neighbours(dict(point)) if freeze(c) not in found]
            if near:
                take(sorted(near, key=lambda c: order[freeze(c)]), len(found) + 2)
                break
        if len(found) == before:
            take(ranked, before + 1)
            if len(found) == before:
                break
    return found


def propose(
    space: Space, most: int, predict: Predict | None = None, known: Mapping[Point, float] | None = None, seed: int = 0
) -> list[Config]:
    """Up to ``most`` points to build where none can be measured, the default first: neighbours of the ``known`` best,
    the model's choice for half of what is left, random points of its better half. What is known already is left out,
    but for the default.
    """
    if len(space) <= most:
        return [space.default, *(c for c in space if c != space.default)]
    known = known or {}
    chosen = {freeze(space.default): space.default}
    best = [dict(p) for p, _ in sorted(known.items(), key=lambda x: (x[1], x[0]))[:3]]
    for c in (near for b in best if b in space for near in space.neighbours(b)):
        if len(chosen) < most and freeze(c) not in known:
            chosen.setdefault(freeze(c), c)
    ranked = [c for c in rank(space, predict, seed) if freeze(c) not in known]
    better = ranked[: max(most, len(ranked) // 2)]
    half = len(chosen) + (most - len(chosen) + 1) // 2
    for limit, order in ((half, ranked), (most, random.Random(seed).sample(better, len(better))), (most, ranked)):
        for c in order:
            if len(chosen) < limit:
                chosen.setdefault(freeze(c), c)
    return list(chosen.values())


def rank(space: Space, predict: Predict | None, seed: int = 0) -> list[Config]:
    """All points, the most promising first; without a model in random order.

    The model's best come spread out: of each two neighbours in its order that differ in one knob alone the second
    waits, so that a first few points say something about every knob.
    """
    points: Sequence[Config] = sorted(space, key=freeze)
    shuffled = random.Random(seed).sample(points, len(points))
    if predict is None:
        return shuffled
    order = sorted(shuffled, key=predict)
    first: list[Config] = []
    late: list[Config] = []
    values: dict[tuple[str, int], int] = {}
    for c in order:
        crowd = max(values.get(item, 0) for item in c.items() if len(space.choices[item[0]]) > 1)
        (first if crowd <= 1 + len(first) // 2 else late).append(c)
        for item in c.items():
            values[item] = values.get(item, 0) + 1
    return [*first, *late]
