"""The format of the work lists that ``plan`` writes and ``select`` and ``attend`` read.

``work`` is int32 ``[2, N]``: row ``SELECT`` is the list of ``select``, row ``ATTEND`` that of ``attend``.

    column   0      1               2 ...  HEADER + items - 1        beyond
             items  pages per item  request << PART_BITS | part      undefined

The items of one request stand next to each other, in the order of their parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP, early
from vortex.codegen.tir import Buffer, Expr, T, i32, let

SELECT, ATTEND = 0, 1
"""The row of ``work`` that holds the list of each kernel."""
HEADER = 2
"""Words of a work list before its items: how many there are, and the pages of each."""
PART_BITS = 16
"""Bits of an item that number its part of the request."""


@dataclass(frozen=True)
class Entry:
    """What a CTA reads of a work list, whether or not the list has an item for it."""

    items: Expr
    """How many items the list has."""
    item: Expr
    """The packed item; undefined beyond the last one."""
    pages: Expr
    """Pages of each item."""

    @classmethod
    def read(cls, work: Buffer, row: int, at: Expr) -> Entry:
        """The entry of item ``at`` of the list in ``row``: three loads that are on their way together."""
        return cls(
            early("items", work, i32(row), i32(0)),
            early("entry", work, i32(row), at + HEADER),
            early("size", work, i32(row), i32(1)),
        )


def pack_item(request: Expr, part: Expr) -> Expr:
    """One item as the list keeps it."""
    return T.bitwise_or(T.shift_left(request, i32(PART_BITS)), part)


def unpack_item(item: Expr, request: str, part: str) -> tuple[Expr, Expr]:
    """The request and the part of an item, bound to variables of these names."""
    return (
        let(request, T.shift_right(item, i32(PART_BITS))),
        let(part, T.bitwise_and(item, i32((1 << PART_BITS) - 1))),
    )


def part_pages(pages: Expr, item: Expr, blocks: int = 1) -> Expr:
    """Pages of each item of ``select`` but a request's last, in whole page tiles: at most 5/4 of ``item``. Where a page
    of so many ``blocks`` is scored beside these, tiles are of such pages.
    """
    tile = WARP * blocks
    parts = let("even_parts", T.max(i32(1), T.truncdiv(pages + (item - T.truncdiv(item, i32(4)) - 1), item)))
    even = T.truncdiv(pages + (parts - 1), parts)
    return let("part_pages", T.max(i32(tile), T.truncdiv(even + (tile - 1), i32(tile)) * tile))
