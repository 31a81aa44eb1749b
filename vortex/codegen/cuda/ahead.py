"""Summaries asked into the L2 cache before their turn. These are hints: they change no result and wait for nothing.

What a kernel may not read yet, because the kernel in front still writes it, it may ask for: the L2 cache is where all
SMs see the same memory, so what is written later is found there all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.lanes import Cta
from vortex.codegen.cuda.plan import HEADER, PART_BITS, part_pages
from vortex.codegen.cuda.ptx import WARP, ask_l2, early, quotient, remainder, wide
from vortex.codegen.cuda.rows import Layout
from vortex.codegen.tir import Buffer, Expr, T, i32, let
from vortex.codegen.values import type_of
from vortex.ir.dialects import page

GRAIN = 16
"""Bytes: sizes and addresses of what is asked for are multiples."""


@dataclass(frozen=True, slots=True)
class Record:
    """What one page has of one field, for one KV head."""

    buffer: str
    bytes: int


def records_of(layout: Layout) -> tuple[Record, ...]:
    """The summaries of a page that can be asked for."""
    found: dict[str, Record] = {}
    for o in layout.f.ops:
        if isinstance(o, page.Load) and layout.paged(o):
            t = type_of(o.value)
            size = t.numel * t.dtype.bytes
            if t.dtype.is_float and size % GRAIN == 0:
                found[o.buffer] = Record(o.buffer, size)
    return tuple(found.values())


def ask(records: Sequence[Record], views: dict[str, Buffer], place: Expr) -> None:
    """Have the summaries of a page brought in; ``place`` is its record in every field, ``views`` are rows of words."""
    for r in records:
        ask_l2(views[r.buffer].ptr_to([wide(place) * (r.bytes // 4)]), r.bytes)


@dataclass(frozen=True, slots=True)
class Later:
    """An item that a later CTA takes; ``exists`` says whether there is one, and the rest is in range in any case."""

    page_table: Buffer
    exists: Expr
    r: Expr
    h: Expr
    first: Expr
    """Of the request's candidates."""
    begin: Expr
    end: Expr
    """Of the item, among the candidates."""

    def page(self, cta: Cta, turn: int) -> tuple[Expr, Expr]:
        """Whether this lane has a page in slab ``turn`` of its warp there, and which page that is."""
        at = let("later_at", self.begin + (cta.warp + turn * cta.warps) * WARP + cta.lane)
        inside = let("is_later_page", T.And(self.exists, at < self.end))
        known = T.max(i32(0), T.min(at, self.end - 1))
        return inside, early("later_page", self.page_table, self.r, self.first + known)


class LaterItem:
    """Finds the item a wave away in steps, so that each load of it goes out with the like load of the own item."""

    def __init__(self, args: Arguments, place: Expr, items: Expr, heads: Expr, wave: int) -> None:
        """Read its entry of the work list; ``place`` is the CTA's number."""
        self.args = args
        at = let("later_place", place + wave)
        item = let("later_item", quotient(at, heads))
        self.h = let("later_h", remainder(at, heads))
        self.exists = let("is_later", item < items)
        self.entry = early("later_entry", args.buffers["work"], i32(0), T.min(item, items - 1) + HEADER)

    def find_row(self) -> None:
        """Read the row of ``plan`` it belongs to."""
        plan = self.args.buffers["plan"]
        self.r = let("later_r", T.shift_right(self.entry, i32(PART_BITS)))
        self.first, self.scored = (
            early(n, plan, i32(at), self.r) for n, at in (("later_first", 2), ("later_scored", 3))
        )

    def found(self, size: Expr) -> Later:
        """All of it; ``size`` is that of the work list."""
        size = part_pages(self.scored, size)
        begin = let("later_begin", T.bitwise_and(self.entry, i32((1 << PART_BITS) - 1)) * size)
        end = let("later_end", T.min(begin + size, self.scored))
        return Later(self.args.buffers["page_table"], self.exists, self.r, self.h, self.first, begin, end)
