"""How many pages a row may attend to."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, SupportsIndex

from vortex.errors import BAD_BUDGET
from vortex.untrusted_json import Range, Raw

I32_MAX = 2**31 - 1


def integer(x: object) -> int | None:
    """An integer of Python's from any (numpy's too); None for what is none, truth values among them."""
    if isinstance(x, bool) or not isinstance(x, SupportsIndex):
        return None
    try:
        return operator.index(x)
    except TypeError:
        return None


@dataclass(frozen=True, slots=True)
class Budget:
    """``pages`` scored pages beside the first ``sink`` and last ``recent``, or ``ratio`` of all if that is more.

    Of ``n`` pages ``total(n) = max(pages + sink + recent, floor(ratio * n))`` are kept, in exact integer
    arithmetic. ``ratio`` is a rational: an int, ``Fraction``, a string such as ``"1/16"``, or a float read as
    the decimal it prints as.

    Raises:
        VortexError: VX1020 when a number is out of range.
    """

    pages: int
    ratio: Annotated[Fraction | int | str | float, Raw()] = 0
    sink: int = 1
    recent: int = 2

    def __post_init__(self) -> None:
        for name, least in (("pages", 0), ("sink", 0), ("recent", 1)):
            number = integer(getattr(self, name))
            if number is None or not least <= number < 2**28:
                raise BAD_BUDGET.at(why=f"{name} is {getattr(self, name)!r}, an integer of at least {least} is needed")
            object.__setattr__(self, name, number)
        try:
            ratio = Fraction(str(self.ratio))
        except (ValueError, ZeroDivisionError):
            raise BAD_BUDGET.at(why=f"ratio is {self.ratio!r}, a number such as '1/16' is needed") from None
        if ratio < 0 or max(ratio.numerator, ratio.denominator) > I32_MAX:
            raise BAD_BUDGET.at(why=f"ratio {ratio} is negative or has too many digits")
        object.__setattr__(self, "ratio", ratio)

    def total(self, n: int) -> int:
        """Pages kept of ``n``, reserved ones included; not clipped to ``n``."""
        ratio = Fraction(self.ratio)
        return max(self.pages + self.sink + self.recent, ratio.numerator * n // ratio.denominator)

    def numbers(self) -> tuple[int, int, int, int, int]:
        """As the ``budget`` argument of the plan kernel: pages, sink, recent, ratio numerator, denominator."""
        ratio = Fraction(self.ratio)
        return self.pages, self.sink, self.recent, ratio.numerator, ratio.denominator


@dataclass(frozen=True, slots=True)
class Cap:
    """What bounds the pages that a flow selects, whatever its scores are.

    A selection has one or several parts. ``budgets`` of them take up to as many pages as the :class:`Budget` leaves
    beside the reserved ones, the others together up to ``pages``. ``always``: rows are scored even where all their
    pages would fit, for how many are selected depends on the scores.
    """

    budgets: Annotated[int, Range(0, 8)] = 1
    pages: Annotated[int, Range(0, 2**28)] = 0
    always: bool = False

    def total(self, budget: Budget, n: int) -> int:
        """The most pages that are selected of ``n``, reserved ones included; not clipped to ``n``."""
        reserved = budget.sink + budget.recent
        return reserved + self.budgets * (budget.total(n) - reserved) + self.pages

    def scored(self, budget: Budget, n: int) -> int:
        """How many of ``n`` pages are scored."""
        if not self.always and n <= self.total(budget, n):
            return 0
        return max(0, n - budget.sink - budget.recent)
