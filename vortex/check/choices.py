"""Which candidates a selection may hold and which it must, where rounding moves scores, ranks and counts a bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vortex.budget import Budget, Cap
from vortex.ir.ranking import SHARE_BITS, Ranked, masses, ranking, reaching


@dataclass(frozen=True, eq=False)
class Bounds:
    """One part of a selection: between ``fewest`` and ``most`` of the best candidates, which may change places with
    those whose scores are within ``slack``.
    """

    scores: Any
    slack: Any
    fewest: int
    most: int

    @classmethod
    def of(cls, right: Ranked, slack: Any, left: int, *, mass: float = 0.0, others: Sequence[Ranked] = ()) -> Bounds:
        """Of a part to which the budget leaves ``left`` pages. ``mass`` is how far rounding may move a share of the
        mass, relative to it; ``others`` are the same part from inputs that were changed as rounding may.
        """
        taken = [x.taken(left) for x in (right, *others)]
        if right.share:
            room = min(right.pages or left, len(right.score))
            low, high = (right.share * (1 + sign * mass) for sign in (-1, 1))
            taken.append(min(room, reaching(right.score, max(1, int(low)))))
            if mass:
                whole = high >= 2**SHARE_BITS
                taken.append(min(room, len(right.score) if whole else reaching(right.score, int(high))))
        score = right.over()
        return cls(masses(score) if right.share else score, slack, min(taken), max(taken))

    def missed(self, count: int) -> tuple[Any, set[int]]:
        """How far each candidate's score is from that of the last of the best ``count``, 0 where rounding explains it;
        and the best.
        """
        order = ranking(self.scores)
        best = {int(p) for p in order[:count]}
        if not best:
            return np.full(len(order), np.inf), best
        last = order[min(count, len(order)) - 1]
        with np.errstate(invalid="ignore"):
            far = np.abs(np.asarray(self.scores, np.float64) - float(self.scores[last]))
            near = (far <= self.slack + self.slack[last]) | np.isinf(self.slack)
        return np.where(near, 0.0, np.where(np.isnan(far), np.inf, far)), best


def unexplained(mine: Sequence[int], parts: Sequence[Bounds]) -> tuple[int, float]:
    """Candidates that ``mine`` holds and no part may hold, or lacks and some part must hold; and how far the score of
    the worst is from where it would be right.
    """
    held, wrong, gap = set(mine), set[int](), 0.0
    strange = dict.fromkeys(held, float("inf"))
    for part in parts:
        far, best = part.missed(part.most)
        strange = {p: 0.0 if p in best else min(x, float(far[p])) for p, x in strange.items()}
        far, best = part.missed(part.fewest)
        lost = {p: float(far[p]) for p in best - held if far[p] > 0}
        wrong |= set(lost)
        gap = max([gap, *lost.values()])
    surplus = {p: x for p, x in strange.items() if x > 0}
    gap = max([gap, *surplus.values()])
    wrong |= set(surplus)
    if not max(p.fewest for p in parts) <= len(held) <= sum(p.most for p in parts):
        return max(1, len(wrong)), float("inf")
    return len(wrong), gap


def differing(mine: Sequence[int], parts: Sequence[Bounds], n: int, budget: Budget, cap: Cap) -> tuple[int, float]:
    """How many of a request's ``n`` pages ``mine`` holds or lacks for no reason, and how far the scores of candidates
    among them are off. ``mine`` must be ascending; ``parts`` are those of its selection, where rows of it are scored.
    """
    if list(mine) != sorted(set(mine)):
        return max(1, len(mine)), float("inf")
    scored, first = cap.scored(budget, n), cap.candidates(budget, n).start
    candidates = range(first, first + scored)
    if others := (set(mine) ^ set(range(n))) - set(candidates):
        return len(others), float("inf")
    return unexplained([p - first for p in mine if p in candidates], parts) if scored else (0, 0.0)
