"""How many pages a row may attend to."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, SupportsIndex

from vortex.errors import BAD_BUDGET
from vortex.untrusted_json import Range, Raw, shown

I32_MAX = 2**31 - 1

MOST_PAGES = 2**28
"""No number of pages reaches it: what plans count with has room for twice as many."""


DIGITS = 18
"""Of a number that fits 64 bits, at most."""


def integer(x: object) -> int | None:
    """An integer of Python's from any (numpy's too); None for what is none, truth values among them."""
    if isinstance(x, bool) or not isinstance(x, SupportsIndex):
        return None
    try:
        return operator.index(x)
    except TypeError:
        return None


def natural(text: str) -> int | None:
    """The number that decimal digits stand for; None for other text and for one with more digits than any number has
    here, which Python refuses to read from some length on.
    """
    return int(text) if text.isdecimal() and len(text) <= DIGITS else None


def _table(given: object) -> tuple[tuple[int, ...], ...]:
    """Rows of numbers from a list of numbers, or of lists of them; VX1020."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise BAD_BUDGET.at(why=f"table is {given!r}; a list of numbers, or of a list for each layer, is needed")
    rows = []
    for layer, row in enumerate(given):
        listed = list(row) if isinstance(row, Iterable) and not isinstance(row, str) and integer(row) is None else [row]
        numbers = [integer(x) for x in listed]
        for x, number in zip(listed, numbers, strict=True):
            if number is None or not 0 <= number < MOST_PAGES:
                raise BAD_BUDGET.at(why=f"table[{layer}] holds {x!r}, an integer from 0 to {MOST_PAGES - 1} is needed")
        if not numbers:
            raise BAD_BUDGET.at(why=f"table[{layer}] is empty")
        rows.append(tuple(n for n in numbers if n is not None))
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class Budget:
    """``pages`` scored pages beside the first ``sink`` and last ``recent``, or ``ratio`` of all if that is more.

    Of ``n`` pages ``total(n) = max(pages + sink + recent, floor(ratio * n))`` are kept, in exact integer
    arithmetic. ``ratio`` is a rational: an int, ``Fraction``, a string such as ``"1/16"``, or a float read as
    the decimal it prints as.

    Instead of ``pages`` there may be a ``table`` of it: a number for each layer, or for each layer a list of one for
    each KV head of the model; ``pages`` is then the largest of them, which bounds every row. A table takes no ratio.

    Raises:
        VortexError: VX1020 when a number is out of range, or for a layer or head that the table does not have.
    """

    pages: Annotated[int, Raw()] = -1
    ratio: Annotated[Fraction | int | str | float, Raw()] = 0
    sink: Annotated[int, Raw()] = 1
    recent: Annotated[int, Raw()] = 2
    table: Annotated[tuple[tuple[int, ...], ...], Raw()] = ()
    """For each layer a number for each head, or one for all."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _table(self.table))
        if self.table:
            most = max(x for row in self.table for x in row)
            if integer(self.pages) not in (-1, most):
                raise BAD_BUDGET.at(why=f"pages is {self.pages!r} beside a table whose largest number is {most}")
            object.__setattr__(self, "pages", most)
        elif self.pages == -1:
            raise BAD_BUDGET.at(why="it has neither pages, 0 or more, nor a table")
        for name, least in (("pages", 0), ("sink", 0), ("recent", 1)):
            number = integer(getattr(self, name))
            if number is None or not least <= number < MOST_PAGES:
                needed = f"an integer from {least} to {MOST_PAGES - 1} is needed"
                raise BAD_BUDGET.at(why=f"{name} is {shown(getattr(self, name))}, {needed}")
            object.__setattr__(self, name, number)
        try:
            ratio = Fraction(str(self.ratio))
        except (ValueError, ZeroDivisionError):
            raise BAD_BUDGET.at(why=f"ratio is {self.ratio!r}, a number such as '1/16' is needed") from None
        if ratio < 0 or max(ratio.numerator, ratio.denominator) > I32_MAX:
            raise BAD_BUDGET.at(why=f"ratio {ratio} is negative or has too many digits")
        if ratio and self.table:
            raise BAD_BUDGET.at(why=f"a table of pages has the ratio {ratio} beside it; 0 is needed")
        object.__setattr__(self, "ratio", ratio)

    def of(self, layer: int, head: int) -> Budget:
        """That of the rows of one layer and KV head of the model."""
        if not self.table:
            return self
        if layer >= len(self.table) or (head >= len(row := self.table[layer]) and len(row) > 1):
            lacks = f"layer {layer}" if layer >= len(self.table) else f"head {head} of layer {layer}"
            raise BAD_BUDGET.at(why=f"the table of {len(self.table)} layers has no number for {lacks}")
        return Budget(row[head] if len(row) > 1 else row[0], 0, self.sink, self.recent)

    def require_model(self, layers: int, heads: int) -> None:
        """VX1020 for a table that is not of just so many layers, and of so many KV heads where it tells heads apart."""
        if self.table and len(self.table) != layers:
            raise BAD_BUDGET.at(why=f"the table has {len(self.table)} layers, and the model has {layers}")
        for layer, row in enumerate(self.table):
            if len(row) not in (1, heads):
                why = f"table[{layer}] has {len(row)} numbers, and the model has {heads} KV heads; one or {heads}"
                raise BAD_BUDGET.at(why=f"{why} are needed")

    def row(self, layer: int, head: int) -> int:
        """The bound of one layer and KV head beside what bounds all rows; 2^31 - 1 without a table."""
        return self.of(layer, head).pages if self.table else I32_MAX

    def total(self, n: int) -> int:
        """Pages kept of ``n``, reserved ones included; not clipped to ``n``."""
        ratio = Fraction(self.ratio)
        return max(self.pages + self.sink + self.recent, ratio.numerator * n // ratio.denominator)

    def numbers(self) -> tuple[int, int, int, int, int]:
        """What the plan kernel knows of it: pages, sink, recent, ratio numerator, denominator."""
        ratio = Fraction(self.ratio)
        return self.pages, self.sink, self.recent, ratio.numerator, ratio.denominator


EVERY_PAGE = Budget(0, sink=0, recent=2**28 - 1)
"""It reserves all pages of any request, whatever a flow would select."""


@dataclass(frozen=True, slots=True)
class Cap:
    """What bounds the pages that a flow selects, whatever its scores are.

    A selection has one or several parts. ``budgets`` of them take up to as many pages as the :class:`Budget` leaves
    beside the reserved ones, the others together up to ``pages``. ``always``: rows are scored even where all their
    pages would fit, for how many are selected depends on the scores.

    Where a flow has fields of pages and selects their blocks, candidates are whole pages of ``whole`` blocks: what is
    reserved at both ends reaches on to where a page begins.
    """

    budgets: Annotated[int, Range(0, 8)] = 1
    pages: Annotated[int, Range(0, 2**28)] = 0
    always: bool = False
    whole: Annotated[int, Range(1, 2**28)] = 1

    def most(self, budget: Budget, n: int) -> int:
        """The most candidates that are selected of ``n`` pages; not clipped to their number."""
        return self.budgets * (budget.total(n) - budget.sink - budget.recent) + self.pages

    def total(self, budget: Budget, n: int) -> int:
        """The most pages that are selected of up to ``n``, reserved ones included; not clipped to ``n``."""
        return budget.sink + budget.recent + 2 * (self.whole - 1) + self.most(budget, n)

    def candidates(self, budget: Budget, n: int) -> range:
        """Those of ``n`` pages that are not reserved."""
        first = -(-budget.sink // self.whole) * self.whole
        end = max(0, n - budget.recent) // self.whole * self.whole
        return range(first, max(first, end))

    def kept(self, budget: Budget, n: int) -> int:
        """The most pages that are selected of just ``n``."""
        return min(n, n - len(self.candidates(budget, n)) + self.most(budget, n))

    def scored(self, budget: Budget, n: int) -> int:
        """How many of ``n`` pages are scored."""
        candidates = len(self.candidates(budget, n))
        return candidates if self.always or candidates > self.most(budget, n) else 0
