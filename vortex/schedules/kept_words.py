"""What ``select`` on a GPU keeps of pages from one sweep to the next, told from the IR alone: how much, and where.

What is kept of candidates lies in shared memory where the row is short, and otherwise in its workspace. The pages of a
shortlist are few, whatever the row is, and so what is kept of them is always in shared memory:

    %logits = .. <in = "scratch", slot = 0> : f32[S1<=64, 4]        256 words of shared memory
    %near = flow.shortlist(%score) <slot = 4> : i32[S1<=64]         a word of each candidate: the keys that it is by
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.ir.core import Function, Op
from vortex.ir.dialects import flow
from vortex.ir.staging import axis_of
from vortex.ir.types import Sym
from vortex.schedules.contractions import type_of
from vortex.schedules.page_tiles import PAGE_TILE, tile_of
from vortex.schedules.shared_words import aligned

MOST_WORDS = 1024
"""Of one value of a shortlist's pages: what takes more is kept as what is of candidates."""


@dataclass(frozen=True)
class KeptWords:
    """What is kept, by the op that makes it."""

    of_lists: dict[Op, int]
    """Words of shared memory for values of the pages of shortlists."""
    partials: dict[Op, int]
    """The same for what page tiles of a list leave of a fold or scan."""
    keys: dict[flow.Ranking, int]
    """The same for the keys by which pages of a shortlist are chosen."""
    of_candidates: tuple[int, ...]
    """The words of each candidate that are used, of those that plan-memory gave out."""
    ranked: tuple[int, ...]
    """Of those, the keys that candidates are chosen by."""
    listed: tuple[int, ...]
    """Of those, what is kept of the pages of shortlists alone, too much for shared memory."""
    crossing: dict[Op, int]
    """Words that folds and scans over pages leave of each page tile of the candidates, in order; those over a short
    list leave theirs in ``partials``.
    """

    @classmethod
    def of(cls, f: Function) -> KeptWords:
        of_lists: dict[Op, int] = {}
        partials: dict[Op, int] = {}
        keys: dict[flow.Ranking, int] = {}
        ranked: set[int] = set()
        swept: set[int] = set()
        listed: set[int] = set()
        page_words = int(f.attrs.get("page_words", 0))
        selects = list(range(int(f.attrs.get("keys", page_words)), page_words))
        for o in f.ops:
            if isinstance(o, flow.Ranking):
                axis = type_of(o.scored).pages
                alone = isinstance(o, flow.Shortlist) or len(selects) == 1
                if axis is not None and alone and 0 < axis.limit <= MOST_WORDS:
                    keys[o] = axis.limit
                    selects = selects if isinstance(o, flow.Shortlist) else []
                elif isinstance(o, flow.Shortlist):
                    (listed if axis is not None and axis.listed else ranked).add(int(o.notes["slot"]))
            elif o.result is not None:
                axis = axis_of(o)
                if o.carries() and axis is not None and _fits(_numel(o) * tiles_of(axis)):
                    partials[o] = partial_words_of(f, o) * tiles_of(axis)
                if o.notes.get("in") == "scratch":
                    axis = type_of(o.value).pages
                    assert axis is not None
                    if _fits(words := _numel(o) * axis.limit):
                        of_lists[o] = words
                    else:
                        kept = listed if axis.listed else swept
                        kept |= {int(o.notes["slot"]) + e for e in range(_numel(o))}
        crossing = {o: partial_words_of(f, o) for o in f.ops if o.result is not None and o.carries()}
        crossing = {o: words for o, words in crossing.items() if o not in partials}
        parts = [type_of(o.scored).pages for o in f.ops if isinstance(o, flow.Part)]
        (listed if all(axis is not None and axis.listed for axis in parts) else ranked).update(selects)
        # a word that several take in turn is told of once
        ranked, listed = ranked - swept, listed - ranked - swept
        every, chosen_by, of_list = (tuple(sorted(words)) for words in (ranked | swept | listed, ranked, listed))
        return cls(of_lists, partials, keys, every, chosen_by, of_list, crossing)

    @property
    def of_page_tile(self) -> int:
        """Words that are kept of each page tile of the candidates."""
        return sum(self.crossing.values())

    def chip_pages(self, chip_words: int) -> int:
        """Pages of the longest row of which everything is kept in so many words of shared memory."""
        words = len(self.of_candidates) + -(-self.of_page_tile // PAGE_TILE)
        return chip_words // max(1, words) // PAGE_TILE * PAGE_TILE

    @property
    def list_words(self) -> int:
        """Words of shared memory for all that is kept of lists."""
        return sum(self._each)

    @property
    def aligned_list_words(self) -> int:
        """The same as they are handed out, each on a boundary of 16 bytes."""
        return sum(aligned(words) for words in self._each)

    @property
    def _each(self) -> list[int]:
        return [*self.of_lists.values(), *self.partials.values(), *self.keys.values()]


def partial_words_of(f: Function, o: Op) -> int:
    """Words per page tile of the partial result of a fold or scan over pages."""
    if found_beside(f, o) is not None:
        return 0
    return max(1, type_of(o.value).numel) * (2 if isinstance(o, flow.SoftmaxSum) else 1)


def found_beside(f: Function, o: Op) -> flow.SoftmaxSum | None:
    """What finds the largest over pages on its way, where ``o`` is just that."""
    if not isinstance(o, flow.ReduceMax) or not o.keepdims or o.axes != (type_of(o.x).page_axis,):
        return None
    sums = (s for s in f.ops if isinstance(s, flow.SoftmaxSum))
    return next((s for s in sums if s.x is o.x), None)


def largest_of(f: Function, o: flow.SoftmaxSum) -> flow.ReduceMax | None:
    """The op whose result ``o`` finds on its way."""
    found = (m for m in f.ops if isinstance(m, flow.ReduceMax) and found_beside(f, m) is o)
    return next(found, None)


def _numel(o: Op) -> int:
    return max(1, type_of(o.value).numel)


def tiles_of(axis: Sym) -> int:
    """Page tiles of a shortlist; 0 of the candidates, of which there may be any number."""
    return -(-axis.limit // tile_of(axis))


def _fits(words: int) -> bool:
    return 0 < words <= MOST_WORDS
