"""What ``select`` on a GPU keeps of the pages that a warp has at hand, told from the IR alone.

Values of a sweep are done with when it ends, so that the sweeps over candidates and those over shortlists use the same
memory. A shortlist of few pages keeps few warps busy, and the others take no memory for it:

    candidates    | warp 0          | warp 1          | .. | warp 7          |
    shortlists    | warp 0    | warp 1    |                                        of up to 64 pages

Neighbours are pages, except in what tensor cores write for 16 rows of a page at once (:attr:`PageTiles.by_page`):
there they are the elements of a page, ``pitch`` words from one page to the next, an odd number, so that lanes that
have a page each find theirs in banks of their own as well.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass

from vortex.ir.core import Function, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.staging import Staging, over_pages
from vortex.ir.types import TensorType
from vortex.schedules.contractions import type_of
from vortex.schedules.matrices import Matrix

PAGE_TILE = 32
"""Pages that a warp computes together; sums over pages are made per page tile, so it is not a knob."""
IN_REGISTERS = 8
"""Numbers of a page that its lane may keep in registers."""
WIDE = 32
"""Results of a fold over pages from which on lanes take results rather than pages."""


def wide(o: Op) -> bool:
    """Whether a fold over pages has so many results that lanes take results."""
    return not isinstance(o, flow.Scan) and o.result is not None and type_of(o.value).numel >= WIDE


def stays_in_lane(f: Function, staging: Staging, together: Container[Op], o: Op) -> bool:
    """Whether a value of a page can stay with the lane that computed it: no other lane ever asks. ``together`` are the
    ops that lanes do together.
    """
    if o in together or type_of(o.value).numel > IN_REGISTERS:
        return False
    return all(
        u not in together and not (u.crosses_pages() and wide(u)) and staging.loop[u] == staging.loop[o]
        for u in _users(f, o.value)
    )


def _users(f: Function, v: Value) -> list[Op]:
    """The ops in which the value is looked at, through what is computed where it is used."""
    found: list[Op] = []
    for o in f.ops:
        if v not in o.operands:
            continue
        inline = o.result is not None and (o.role == "view" or o.notes.get("in") == "inline")
        found += _users(f, o.value) if inline and o.result is not None else [o]
    return found


@dataclass(frozen=True)
class PageTiles:
    """Where the values of a page tile lie in the words of a warp, and how many those are."""

    of_candidates: dict[Value, int]
    of_lists: dict[Value, int]
    """In sweeps over the pages of shortlists."""
    candidate_words: int
    """Words of each warp."""
    list_words: int
    listing_warps: int
    """Warps that the longest of those shortlists keeps busy."""
    by_page: dict[Value, int]
    """The values of which neighbours are a page's elements, with the words from one page to the next."""

    @classmethod
    def of(cls, f: Function, staging: Staging, lane_groups: Collection[Op], matrices: Sequence[Matrix]) -> PageTiles:
        """Lay out the values that lanes of a warp leave each other, where these lane groups and tensor cores do ops."""
        places: tuple[dict[Value, int], dict[Value, int]] = {}, {}
        words, warps = [0, 0], 0
        contracted = {o for m in matrices for o in m.ops}
        written = {m.result for m in matrices}
        by_page = {m.result: type_of(m.result).numel | 1 for m in matrices if m.stacked > 1}
        together = {*lane_groups, *contracted}
        for o in f.ops:
            if o.result is None or not isinstance(o.result.type, TensorType):
                continue
            home = o.notes.get("in")
            kept = o.value in written and home != "scratch" if o in contracted else home == "tile"
            if not kept or not over_pages(o.result) or stays_in_lane(f, staging, together, o):
                continue
            axis = staging.axes[staging.loop[o]]
            listed = int(axis.listed)
            places[listed][o.value] = words[listed]
            words[listed] += by_page.get(o.value, max(1, type_of(o.value).numel)) * PAGE_TILE
            warps = max(warps, -(-axis.limit // PAGE_TILE))
        return cls(places[0], places[1], words[0], words[1], warps, by_page)

    def __contains__(self, v: Value) -> bool:
        return v in self.of_candidates or v in self.of_lists

    def words(self, warps: int) -> int:
        """What they take of a CTA of so many warps."""
        return max(self.candidate_words * warps, self.list_words * min(warps, self.listing_warps))
