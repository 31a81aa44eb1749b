"""Which points of a space to build and measure: all of a small one, of a large one those that the cost model and the
best points so far suggest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from vortex.schedules.space import Config, Space, freeze

Point = tuple[tuple[str, int], ...]
Predict = Callable[[Config], float]
"""Seconds, or anything that ranks; only the order counts."""


def propose(
    space: Space, most: int, predict: Predict | None = None, known: Mapping[Point, float] | None = None, seed: int = 0
) -> list[Config]:
    """Up to ``most`` points to build where none can be measured, defaults first: neighbours of the ``known`` best,
    the model's choice for half of what is left, random points of its better half. What is known already is left out,
    but for the default.
    """
    if len(space) <= most:
        order = rank(space, predict, seed) if predict is not None else space
        return [space.default, *(c for c in order if c != space.default)]
    known = known or {}
    chosen = {freeze(space.default): space.default}
    # of two the model has one
    chosen |= {freeze(c): c for c in space.variants[: max(0, most - 2)] if freeze(c) not in known}
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
