"""Which rows of the products a lane loads and has sums of, and which columns.

Where a page has many rows (``Matrix.stacked``), for example one for each token, M is not 16 pages but 16 rows that
follow each other: of one page, or 8 of each of two. Loads are of whole pages then, and a loop goes over the page tile:

    page group       d0, d1      row 16 tile + 2 group
                     d2, d3      row 16 tile + 2 group + 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import quotient, remainder
from vortex.codegen.cuda.select.tensor_core.contractions import Contractions, Unit
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.tiles import Place, place_of
from vortex.codegen.tir import Expr, T, i32, let, unflat
from vortex.schedules.matrices import COLUMNS, ROWS, Matrix


@dataclass(frozen=True)
class Row:
    """Where one of the rows of a product lies that this lane loads and has sums of."""

    slot: Expr
    """The page, by its place in the page tile."""
    place: Place
    """The index along ``matrix.tiles``."""


@dataclass(frozen=True)
class Lane:
    """A lane's part of the products of one sweep."""

    work: Contractions
    group: Expr
    """Which page of 8 the lane has."""
    member: Expr
    """Which part of the page it has."""

    @classmethod
    def of(cls, work: Contractions, cta: Cta) -> Lane:
        """The lane that runs."""
        group = let("page_of_lane", quotient(cta.lane, i32(4)))
        return cls(work, group, let("quarter_of_lane", remainder(cta.lane, i32(4))))

    def rows(self, unit: Unit, turn: Expr, halves: Sequence[Expr] = (0, 1)) -> list[Row]:
        """The rows of which this lane loads the low words and the high ones."""
        m = unit.matrix
        if m.stacked == 1:
            place: Place = {k: i32(x) for k, x in unit.place.items()}
            return [Row(self.group + (unit.tile * ROWS + half * 8), place) for half in halves]
        tile = turn * self.work.turn_tiles + unit.tile
        if m.stacked < ROWS:
            slot = let("slot", quotient(self.group, i32(4)) + tile * 2)
            first = remainder(self.group, i32(4)) * 2
        else:
            each = m.stacked // ROWS
            slot = let("slot", i32(0) + quotient(tile, i32(each)) if each > 1 else i32(0) + tile)
            first = self.group * 2 + (remainder(tile, i32(each)) * ROWS if each > 1 else 0)
        first = let("row", first)
        return [Row(slot, _place_along(m.tiles, first + half)) for half in halves]

    def column(self, m: Matrix, n: int) -> tuple[Expr, Expr]:
        """Which column this lane's ``n``-th is, the last beyond the last, and whether it is of the first piece."""
        column = self.member * 2 + (n // 2 * COLUMNS + n % 2)
        head = remainder(column, i32(m.piece_step)) if m.side_by_side else column
        first = column < (m.piece_step if m.side_by_side else m.count)
        return spread(m, T.min(head, i32(m.count - 1))), first


def spread(m: Matrix, column: Expr) -> Expr:
    """Which column of the result one of the product is, of those that there are."""
    return quotient(column, i32(2)) + remainder(column, i32(2)) * (m.count // 2) if m.spread else column


def _place_along(axes: Sequence[tuple[int, int]], row: Expr) -> Place:
    """The index along axes of which rows are counted; where they are one, it is the row."""
    if len(axes) == 1:
        return {axes[0][0]: row}
    return place_of(tuple(axes), unflat(row, [d for _, d in axes]))
