"""The order of pages by their scores, which every selection and every kernel keeps to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Ranked:
    """What a selection gives before the budget is known: the scores, from which the budget later picks the pages."""

    score: Any
    """One number for each page that is scored: every candidate, ``[S]``, or those of a shortlist."""
    near: Any = None
    """Which candidates the pages of the shortlist are, by their positions, ascending; None where all are scored."""

    def best(self, k: int) -> Any:
        """Positions of the best ``k`` candidates, ascending; fewer where a shortlist has fewer pages."""
        found = np.sort(ranking(self.score)[:k])
        return found if self.near is None else np.asarray(self.near)[found]

    def over(self, candidates: int) -> Any:
        """The scores of that many candidates, NaN for those that a shortlist left out."""
        if self.near is None:
            return self.score
        spread = np.full(candidates, np.nan, np.float32)
        spread[self.near] = self.score
        return spread


def ranking(score: Any) -> Any:
    """Positions from best to worst: +inf > finite > -inf > NaN, -0 equals +0, ties to the lower position."""
    score = np.asarray(score, np.float64)
    lost = np.isnan(score)
    return np.lexsort((-np.where(lost, 0, score), lost))
