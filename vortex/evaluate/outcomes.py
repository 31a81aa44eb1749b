"""What came of each prompt under each rule: the records that measures, reports and resumed runs are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BASELINES = ("dense", "oracle", "random", "recent")
"""Rules that are no flows; every evaluation has them."""


@dataclass(frozen=True)
class Lane:
    """One way to read a prompt's pages; the lanes of a prompt are decoded as one batch over the same pages.

    Attributes:
        rule: a flow's name, or one of :data:`BASELINES`.
        budget: candidate pages that are kept beside the first and the recent ones; 0 for ``dense``.
    """

    rule: str
    budget: int

    def __str__(self) -> str:
        return self.rule if self.rule == "dense" else f"{self.rule}@{self.budget}"


@dataclass(frozen=True)
class Outcome:
    """What one lane made of one prompt. Layers are those where pages are selected, heads are KV heads.

    Attributes:
        text: the answer, decoded greedily.
        score: 0 to 1, as the task scores it; NaN for a prompt that wants nothing but log-probability.
        logprob: mean log-probability of a token of the right answer, in nats, under teacher forcing.
        recall: share of (step, layer, head) that read all pages of the evidence, teacher-forced; NaN without.
        mass: ``[layers, heads]``, share of dense attention's mass that was read, mean over steps and the group's heads.
        error: ``[layers, heads]``, ``|out - dense| / |dense|`` of what attention gives, mean over steps.
        pages: pages that a head read, mean over steps, layers and heads.
    """

    task: str
    length: int
    index: int
    lane: Lane
    text: str
    score: float
    logprob: float
    recall: float
    mass: np.ndarray = field(compare=False)
    error: np.ndarray = field(compare=False)
    pages: float
