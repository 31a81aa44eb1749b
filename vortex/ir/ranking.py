"""The order of pages by their scores, which every selection and every kernel keeps to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Ranked:
    """What a selection gives before the budget is known: the scores, from which the budget later picks the pages."""

    score: Any
    """One number for each candidate, ``[S]``."""

    def best(self, k: int) -> Any:
        """Positions of the best ``k`` candidates, ascending."""
        return np.sort(ranking(self.score)[:k])


def ranking(score: Any) -> Any:
    """Positions from best to worst: +inf > finite > -inf > NaN, -0 equals +0, ties to the lower position."""
    score = np.asarray(score, np.float64)
    lost = np.isnan(score)
    return np.lexsort((-np.where(lost, 0, score), lost))
