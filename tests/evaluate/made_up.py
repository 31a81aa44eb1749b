"""Outcomes that nobody measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from vortex.evaluate.cost import Cost
from vortex.evaluate.outcomes import Lane, Outcome
from vortex.evaluate.statistics import Settings

LAYERS, HEADS = 4, 2
DENSE = Lane("dense", 0)
SETTINGS = Settings(
    model="tiny",
    seed=3,
    layers=(0, 2, 4, 6),
    windowed=4,
    command="vortex eval quest --seed 3",
    versions={"vortex": "0.1.0", "torch": None},
)


def outcome(
    lane: Lane,
    index: int,
    score: float = 1.0,
    task: str = "needle",
    length: int = 4096,
    logprob: float = -1.0,
    recall: float = 1.0,
    mass: float | np.ndarray = 1.0,
    error: float = 0.0,
    pages: float = 7.0,
) -> Outcome:
    return Outcome(
        task=task,
        length=length,
        index=index,
        lane=lane,
        text="",
        score=score,
        logprob=logprob,
        recall=recall,
        mass=np.broadcast_to(np.asarray(mass, np.float32), (LAYERS, HEADS)).copy(),
        error=np.full((LAYERS, HEADS), error, np.float32),
        pages=pages,
    )


def scores(lane: Lane, given: Sequence[float], **rest: object) -> list[Outcome]:
    return [outcome(lane, i, s, **rest) for i, s in enumerate(given)]  # type: ignore[arg-type]


def evaluation(
    flows: Sequence[str] = ("quest", "mass"), budgets: Sequence[int] = (4, 16, 64), prompts: int = 8
) -> Iterator[Outcome]:
    """As a run gives them: three tasks at two lengths, perplexity without answers, a task that the model cannot do."""
    random = np.random.default_rng(0)
    rules = ("oracle", "random", "recent", *flows)
    lanes = [DENSE, *(Lane(r, b) for r in rules for b in budgets)]
    for length in (4096, 8192):
        for task, able in (("niah_single", 0.9), ("niah_multikey", 0.7), ("frequent_words", 0.1), ("perplexity", 1.0)):
            for index in range(prompts):
                luck = random.random()
                for lane in lanes:
                    sure = lane.rule in ("dense", "oracle")
                    worse = 0.0 if sure else 1 - 0.7 * rules.index(lane.rule) / len(rules)
                    bad = 0.0 if sure else max(0.0, worse - 0.1 * math.log2(lane.budget))
                    mass = np.clip(1 - bad * random.random((LAYERS, HEADS)), 0, 1)
                    score = math.nan if task == "perplexity" else float(luck < able - bad)
                    yield outcome(
                        lane,
                        index,
                        score,
                        task,
                        length,
                        logprob=-0.5 - bad,
                        recall=math.nan if task == "perplexity" else float(np.clip(1 - bad, 0, 1)),
                        mass=mass,
                        error=bad,
                        pages=length / 16 if lane == DENSE else lane.budget + 3,
                    )


def costs(flows: Sequence[str] = ("quest", "mass"), budgets: Sequence[int] = (4, 16, 64)) -> dict[Lane, Cost]:
    made = {DENSE: Cost(4.3e9, 1009.0, {"append": 3e5, "attend": 4.3e9})}
    for n, rule in enumerate(("oracle", "random", "recent", *flows)):
        for b in budgets:
            size = b * 2.1e6 + (0 if n < 3 else 5e7 * 1.4 ** (n - 3))
            made[Lane(rule, b)] = Cost(
                size, 15 + size / 4.3e6, {"append": 3e5, "select": size - b * 2.1e6, "attend": b * 2.1e6}
            )
    return made
