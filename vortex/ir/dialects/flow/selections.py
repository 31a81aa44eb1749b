"""Which pages a row attends to: by rank, by mass, and several choices together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vortex.budget import Cap
from vortex.errors import IR_STRUCTURE
from vortex.ir.core import Function, Module, Value, op
from vortex.ir.dialects.flow.kinds import Part, Selection, tensor
from vortex.ir.dialects.flow.leaves import Return
from vortex.ir.ranking import United, numerator
from vortex.ir.types import SelectionType, TensorType, i32, selection

MOST_PARTS = 8
"""Of a union; each keeps a key for every candidate."""


@op("flow.topk")
class TopK(Part):
    """The best pages by score, as many as the budget leaves: +inf > finite > -inf > NaN, ties to the lower page.

    With ``pages``, that many at most, whatever the budget leaves. With a count of the row ``beside`` the score, that
    many within these bounds, none where it is negative. The score may be of the pages of a shortlist, whose list is
    then beside it.
    """

    score: Value
    pages: int = 0
    beside: tuple[Value, ...] = ()
    only_ranks = True

    def infer(self) -> SelectionType:
        for v in self.beside:
            fits = tensor(self, v).dtype == i32 and (tensor(self, v).page_axis is not None or v.type == TensorType(i32))
            self.require(fits, f"the count must be i32[], and a list of pages i32[S1], not {v.type}")
        known = [v for v in (self.counted, self.near) if v is not None]
        self.require(len(known) == len(self.beside), "one count and one list of pages, or none")
        return super().infer()

    @property
    def scored(self) -> Value:
        return self.score

    @property
    def most(self) -> int:
        return self.pages

    @property
    def counted(self) -> Value | None:
        return next((v for v in self.beside if v.type == TensorType(i32)), None)

    @property
    def near(self) -> Value | None:
        return next((v for v in self.beside if v.type != TensorType(i32)), None)


@op("flow.topp")
class TopP(Part):
    """The fewest pages, best first, whose mass reaches the share ``p`` of that of all candidates, at least one; never
    more than the budget leaves, or ``pages``. Negative masses and NaN are 0.
    """

    mass: Value
    p: float
    pages: int = 0
    at: tuple[Value, ...] = ()
    """The list of the pages that the mass is of, where they are those of a shortlist."""

    def infer(self) -> SelectionType:
        self.require(len(self.at) <= 1, "a mass is of one shortlist")
        self.require(0 < self.p <= 1, f"p is {self.p}, not above 0 and at most 1")
        return super().infer()

    @property
    def scored(self) -> Value:
        return self.mass

    @property
    def most(self) -> int:
        return self.pages

    @property
    def near(self) -> Value | None:
        return self.at[0] if self.at else None

    @property
    def share(self) -> int:
        return numerator(self.p)


@op("flow.union")
class Union(Selection):
    """All pages of its parts."""

    of: tuple[Value, ...]

    def infer(self) -> SelectionType:
        self.require(all(isinstance(v.type, SelectionType) for v in self.of), "its parts are selections")
        ok = all(isinstance(v.owner, Part) for v in self.of) and 2 <= len(self.of) <= MOST_PARTS
        self.require(ok, f"2 to {MOST_PARTS} parts are needed, each a choice by one score")
        return selection

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(v.owner for v in self.of if isinstance(v.owner, Part))

    def evaluate(self, *operands: Any) -> Any:
        return United(operands)


def selected(index: Function) -> Selection:
    """The selection that an index function returns; VX2008 where it returns none."""
    end = index.ops[-1]
    o = end.values[0].owner if isinstance(end, Return) and end.values else None
    if not isinstance(o, Selection):
        raise IR_STRUCTURE.at(end.loc or index.loc, why=f"func @{index.name} does not return a selection first")
    return o


def cap_of(flow: Module) -> Cap:
    """What bounds the pages that a flow module selects: whole pages where it has fields of pages beside blocks."""
    cap = selected(flow.functions["index"]).cap
    return replace(cap, whole=blocks_of_page(flow)) if of_pages(flow) else cap


def of_pages(flow: Module) -> list[str]:
    """The fields of a flow module that belong to pages of several blocks."""
    return [d.name for d in flow.declared("field") if d.attrs.get("per") == "page"]


def blocks_of_page(flow: Module) -> int:
    """Into how many blocks the pages of a flow module are divided."""
    size = int(flow.attrs.get("page_size", 1))
    return size // int(flow.attrs.get("block_size", size))
