"""The results of 16 rows, each from the lane that has it in its accumulators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import quotient, remainder, shuffle_xor
from vortex.codegen.cuda.select.page_tile import PageTile
from vortex.codegen.cuda.select.tensor_core.contractions import Unit
from vortex.codegen.cuda.select.tensor_core.factors import Factors
from vortex.codegen.cuda.select.tensor_core.lane import Lane, spread
from vortex.codegen.cuda.select.tensor_core.pieces import joined
from vortex.codegen.cuda.vector_load import unpack
from vortex.codegen.scalar import convert
from vortex.codegen.tiles import extents, place_of
from vortex.codegen.tir import F32, U32, Buffer, Expr, T, cast, equal, i32, let, unflat, when
from vortex.codegen.values import Index, type_of
from vortex.ir.core import Value
from vortex.ir.types import Sym, f16
from vortex.schedules.matrices import COLUMNS, Matrix

Keep = Callable[[Value, Index, Expr, Expr], None]
"""Takes a result: the value, its index with the page's position, the page's place in the page tile, the number."""


@dataclass(frozen=True)
class Results:
    """What becomes of the sums of one sweep."""

    lane: Lane
    sums: Buffer
    """The accumulators of one product."""
    factors: Factors

    def finish(self, unit: Unit, page_tile: PageTile, turn: Expr, scale: Expr | None, keep: Keep) -> None:
        """Hand the results of 16 rows over, each from the lane that has it."""
        m = unit.matrix
        parted = m.side_by_side and m.core == f16
        halves: list[Expr] = [let("half", quotient(self.lane.member, i32(2)))] if parted else [0, 1]
        for half, row in zip(halves, self.lane.rows(unit, turn, halves), strict=True):
            slot = let("slot", row.slot) if m.stacked == 1 else row.slot
            by = None if scale is None else let("scale", convert(_half_of(scale, half), F32))
            for n in range(m.column_tiles):
                for e in range(2):
                    x, column, mine = self._parted(m, half, e) if parted else self._result(m, n, half * 2 + e, e)
                    if mine is None and column is None:
                        continue
                    x = self.factors.scaled(m, x, 2 * n + e, by)
                    # what is kept of a page tile has room for pages beyond the last
                    roomy = m.stacked > 1 and m.result.owner is not None and m.result.owner.notes.get("in") == "tile"
                    tests = [t for t in (mine, None if roomy else slot < page_tile.count) if t is not None]
                    at = place_of(m.columns, unflat(column, extents(m.columns)))
                    at |= row.place
                    _, _, lo = m.op.letters()
                    index = [
                        page_tile.start + slot if isinstance(d, Sym) else at[ord(c)]
                        for c, d in zip(lo, type_of(m.op.value).shape, strict=True)
                    ]
                    if not tests:
                        keep(m.result, index, slot, x)
                        continue
                    with when(tests[0] if len(tests) == 1 else T.And(*tests)):
                        keep(m.result, index, slot, x)

    def _parted(self, m: Matrix, half: Expr, odd: int) -> tuple[Expr, Expr, Expr | None]:
        """The same of two pieces in columns of their own: each member gives another what that is left with, the low row
        or the high one, and takes what the other has of its own row.
        """
        low = equal(half, i32(0))
        own = let("own", T.Select(low, self.sums[odd], self.sums[2 + odd]))
        other = let("other", shuffle_xor(T.Select(low, self.sums[2 + odd], self.sums[odd]), 2))
        if m.load.dtype.bits < 16:
            x = let("both", own + other)
        else:
            x = joined(let("first", T.Select(low, own, other)), let("rest", T.Select(low, other, own)))
        column = let("column", remainder(self.lane.member, i32(2)) * 2 + odd)
        return x, spread(m, column), column < m.count if m.count < m.piece_step else None

    def _result(self, m: Matrix, n: int, e: int, odd: int) -> tuple[Expr, Expr | None, Expr | None]:
        """Sum ``d[e]`` of this lane, its column, and whether the lane has one (None: all do)."""
        if m.side_by_side:
            if odd >= m.count:
                return None, None, None
            head = let("head_sum", self.sums[e])
            rest = let("rest_sum", shuffle_xor(head, 1) + shuffle_xor(head, 2))
            return joined(head, rest), i32(odd), equal(self.lane.member, i32(0))
        at = 4 * n * m.accumulators + e
        x = self.sums[at] if m.accumulators == 1 else joined(self.sums[at], self.sums[at + 4])
        column = let("column", self.lane.member * 2 + (n * COLUMNS + odd))
        mine = column < m.count if m.column_tiles * COLUMNS > m.count else None
        return x, spread(m, column), mine


def _half_of(word: Expr, half: Expr) -> Expr:
    """The f16 number in the lower or the upper half of a word."""
    if isinstance(half, int):
        return unpack(word, half, f16)
    bits = T.bitwise_and(T.shift_right(word, cast(U32, half * 16)), T.uint32(0xFFFF))
    return T.reinterpret("float16", T.Cast("uint16", bits))
