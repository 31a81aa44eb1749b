"""The order of pages by their scores, which every selection and every kernel keeps to, and how many of them are taken.

A share of a mass is counted in whole numbers, so that no order of summation can change it. A mass becomes
``floor(mass * 2^k)``, where k is such that the largest of the row has 31 bits:

    mass     0.75       0.5        2^-40      NaN, -1
    bits     3 * 2^29   2^30       0          0          k = 31

and the share p is ``numerator(p) / 2^24``. Infinity counts as 2^128.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

SHARE_BITS = 24
"""A share is a whole number of 2^-24."""
MASS_BITS = 31
"""Of the largest mass of a row, in whole numbers."""


class Selected(ABC):
    """What a selection gives before the budget is known: the scores, from which the budget later picks the pages."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Ranked, ...]:
        """Each with an order of its own."""

    def best(self, most: int) -> Any:
        """Positions of the candidates that are selected, ascending, where all parts together take up to ``most``: those
        with a number of their own that many, the others equal shares of the rest.
        """
        own = [part.pages for part in self.parts if part.pages]
        rest = max(0, most - min(sum(own), self.parts[0].candidates))
        left = rest // max(1, len(self.parts) - len(own))
        return np.unique(np.concatenate([part.order()[: part.taken(left)] for part in self.parts]))


@dataclass(frozen=True, eq=False)
class Ranked(Selected):
    """The best candidates by one score: ``pages`` of them, or as many as the budget leaves where that is 0.

    ``count`` is how many are wanted, and ``share`` the share of the mass, in 2^-24, that they must reach; either is
    within these bounds.
    """

    score: Any
    """One number for each page that is scored: every candidate, ``[S]``, or those of a shortlist."""
    pages: int = 0
    count: int | None = None
    share: int = 0
    near: Any = None
    """Which candidates the pages of the shortlist are, by their positions, ascending; None where all are scored."""
    row: int | None = None
    """How many candidates the row has, where not all of them are scored."""

    @property
    def candidates(self) -> int:
        """How many candidates there are, scored or not."""
        return len(self.score) if self.near is None or self.row is None else self.row

    def over(self) -> Any:
        """The scores of all candidates, NaN for those that a shortlist left out."""
        if self.near is None:
            return self.score
        spread = np.full(self.candidates, np.nan, np.float32)
        spread[self.near] = self.score
        return spread

    @property
    def parts(self) -> tuple[Ranked, ...]:
        return (self,)

    def order(self) -> Any:
        """Positions among the candidates from best to worst of those that are scored."""
        order = ranking(masses(self.score) if self.share else self.score)
        return order if self.near is None else np.asarray(self.near)[order]

    def taken(self, left: int) -> int:
        """How many are selected, where the budget leaves so many."""
        most = min(self.pages or left, len(self.score))
        if self.share:
            most = min(most, reaching(self.score, self.share))
        return most if self.count is None else max(0, min(most, self.count))


@dataclass(frozen=True, eq=False)
class United(Selected):
    """The candidates of several parts."""

    of: tuple[Ranked, ...]

    @property
    def parts(self) -> tuple[Ranked, ...]:
        return self.of


def ranking(score: Any) -> Any:
    """Positions from best to worst: +inf > finite > -inf > NaN, -0 equals +0, ties to the lower position."""
    score = np.asarray(score, np.float64)
    lost = np.isnan(score)
    return np.lexsort((-np.where(lost, 0, score), lost))


def masses(mass: Any) -> Any:
    """Masses as they count: what is negative, and NaN, is 0."""
    mass = np.asarray(mass, np.float32)
    with np.errstate(invalid="ignore"):
        return np.where(mass > 0, mass, np.float32(0))


def numerator(p: float) -> int:
    """The share ``p`` in 2^-24, at least one of them."""
    return max(1, round(p * 2**SHARE_BITS))


def whole(mass: Any) -> Any:
    """Masses as int64 whole numbers, the largest of 31 bits; see the module."""
    bits = masses(mass).view(np.uint32).astype(np.int64)
    exponent = np.maximum(bits >> 23, 1)
    digits = (bits & 0x7FFFFF) | np.where(bits >> 23 > 0, 0x800000, 0)
    return (digits << (MASS_BITS - 24)) >> np.minimum(exponent.max(initial=1) - exponent, MASS_BITS)


def reaching(mass: Any, share: int) -> int:
    """How many of the best candidates have ``share`` (in 2^-24) of the mass of all, at least 1 where there are any."""
    numbers = whole(mass)
    need = -(-int(numbers.sum()) * share // 2**SHARE_BITS)
    sums = np.cumsum(numbers[ranking(masses(mass))])
    return min(len(numbers), int(np.searchsorted(sums, need)) + 1)
