"""What ``select`` on a GPU keeps of the pages that a warp has at hand, told from the IR alone.

Values of a sweep are done with when it ends, so that the sweeps over candidates and those over shortlists use the same
memory. A shortlist of few pages keeps few warps busy, and the others take no memory for it:

    candidates    | warp 0          | warp 1          | .. | warp 7          |
    shortlists    | warp 0    | warp 1    |                                        of up to 64 pages
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from vortex.ir.core import Function, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.staging import Staging, over_pages
from vortex.ir.types import TensorType
from vortex.schedules.contractions import type_of

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

    @classmethod
    def of(cls, f: Function, staging: Staging, together: Container[Op]) -> PageTiles:
        """Lay out the values that lanes of a warp leave each other; ``together`` are the ops that lanes do together."""
        places: tuple[dict[Value, int], dict[Value, int]] = {}, {}
        words, warps = [0, 0], 0
        for o in f.ops:
            if o.result is None or not isinstance(o.result.type, TensorType) or o.notes.get("in") != "tile":
                continue
            if not over_pages(o.result) or stays_in_lane(f, staging, together, o):
                continue
            axis = staging.axes[staging.loop[o]]
            listed = int(axis.listed)
            places[listed][o.value] = words[listed]
            words[listed] += max(1, type_of(o.value).numel) * PAGE_TILE
            warps = max(warps, -(-axis.limit // PAGE_TILE))
        return cls(places[0], places[1], words[0], words[1], warps)

    def __contains__(self, v: Value) -> bool:
        return v in self.of_candidates or v in self.of_lists

    def words(self, warps: int) -> int:
        """What they take of a CTA of so many warps."""
        return max(self.candidate_words * warps, self.list_words * min(warps, self.listing_warps))
