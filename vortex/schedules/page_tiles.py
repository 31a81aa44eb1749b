"""What ``select`` on a GPU keeps of the pages that a warp has at hand, told from the IR alone.

Values of a sweep are done with when it ends, so that the sweeps over candidates and those over shortlists use the same
memory. The pages of a shortlist are few, so that its page tiles are smaller (:func:`tile_of`): all warps are to load of
them. Warps for which none is left take no memory:

    candidates    | warp 0          | warp 1          | .. | warp 7          |     32 pages each
    shortlists    | warp 0 | warp 1 | ..                   | warp 7 |              of up to 64 pages, 8 each

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
from vortex.ir.types import Sym, TensorType
from vortex.schedules.contractions import type_of
from vortex.schedules.matrices import Matrix

PAGE_TILE = 32
"""Candidates that a warp computes together; sums over pages are made per page tile, so it is not a knob."""
LEAST_TILE, LISTING = 8, 8
"""Pages of a shortlist that a warp computes together, at least, and page tiles of one, where they are small."""
IN_REGISTERS = 8
"""Numbers of a page that its lane may keep in registers."""
WIDE = 32
"""Results of a fold over pages from which on lanes take results rather than pages."""


def tile_of(axis: Sym) -> int:
    """Pages of an axis that a warp computes together: told by the flow alone, as sums depend on it."""
    if not axis.listed:
        return PAGE_TILE
    return min(PAGE_TILE, max(LEAST_TILE, 1 << (-(-axis.limit // LISTING) - 1).bit_length()))


def wide(o: Op) -> bool:
    """Whether a fold over pages has so many results that lanes take results."""
    return not isinstance(o, flow.Scan) and o.result is not None and type_of(o.value).numel >= WIDE


def stays_in_lane(f: Function, staging: Staging, together: Container[Op], o: Op) -> bool:
    """Whether a value of a page can stay with the lane that computed it: no other lane ever asks. ``together`` are the
    ops that lanes do together.
    """
    loop = staging.loop[o]
    alone = all(staging.loop[u] == loop for u in _users(f, o.value))
    return o not in together and alone and reads_own_page(f, staging, together, o, loop)


def reads_own_page(f: Function, staging: Staging, together: Container[Op], o: Op, loop: int) -> bool:
    """Whether in sweep ``loop`` each lane reads few numbers of ``o``'s result, and of its own page alone."""
    if type_of(o.value).numel > IN_REGISTERS:
        return False
    users = [u for u in _users(f, o.value) if staging.loop[u] == loop]
    return not any(u in together or (u.crosses_pages() and (wide(u) or _reads_others(u))) for u in users)


def _reads_others(o: Op) -> bool:
    """Whether an op reads neighbours of the page at hand, which a fold or a scan does not."""
    return o.result is not None and over_pages(o.result) and not isinstance(o, flow.Scan)


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
            words[listed] += by_page.get(o.value, max(1, type_of(o.value).numel)) * tile_of(axis)
            if listed:
                warps = max(warps, -(-axis.limit // tile_of(axis)))
        return cls(places[0], places[1], words[0], words[1], warps, by_page)

    def __contains__(self, v: Value) -> bool:
        return v in self.of_candidates or v in self.of_lists

    def words(self, warps: int) -> int:
        """What they take of a CTA of so many warps."""
        return max(self.candidate_words * warps, self.list_words * min(warps, self.listing_warps))
