"""What a warp of ``select`` computes for 32 candidate pages, a *page tile*, with one page or one result for a lane.
Page tiles of a short list are smaller, and the lanes beyond them repeat their pages.

    LaneTiles:  lane 0  -> page start            WideTiles:  lane 0  -> result 0, 32, .. of the fold
                lane 1  -> page start + 1                    lane 1  -> result 1, 33, ..
                ..                                           ..
                each lane loops over the                     each lane loops over the
                elements of its page                         pages of the page tile

:mod:`vortex.codegen.cuda.select.lane_group` is the third way, in which several lanes share a page. The order of every
sum depends on the shapes of the tile and on the page tile alone: not on the number of threads, nor on which CTA has
the page tile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from vortex.codegen.cuda.cta_compute import GpuTiles, stored_values
from vortex.codegen.cuda.ptx import WARP, quotient, remainder, shuffle
from vortex.codegen.cuda.storage import LaneStorage, PageStorage, PickedStorage
from vortex.codegen.tiles import Fold, extents
from vortex.codegen.tir import Expr, T, i32, let, local, loop, nest, put, unflat, when
from vortex.codegen.values import Index
from vortex.ir.core import Value

LONG = 8
"""Terms of a fold from which on lanes share its results."""
RESULTS = 4
"""Results for one page that a lane accumulates side by side."""


@dataclass(frozen=True)
class PageTile:
    """The ``pages`` that a warp has at hand: ``[start, start + pages)`` of candidates or of a shortlist; ``count``
    exist.
    """

    pages: int
    start: Expr
    count: Expr
    lane: Expr
    slot: Expr
    """Which of them this lane has: lanes beyond the last begin with the first again."""
    last: Expr
    """The last page of the work item; lanes beyond it repeat it, and their results go nowhere."""
    position: Expr
    """Where this lane's page stands among those that the sweep goes over."""
    is_page: Expr
    """Whether this lane has a page of its own, rather than a repeated one."""
    found: dict[Value, Expr] = field(default_factory=dict)
    """What stands there in each list that is read: a candidate, or a position on the axis above."""
    candidate: Expr | None = None
    """The candidate that is this lane's page, where it was looked up in the page table."""
    physical: Expr | None = None
    """This lane's physical page, or physical block where pages have several, where it was looked up."""
    record: Expr | None = None
    """``physical * KV heads + head``: where the summaries of this lane's page lie in every field."""
    whole: bool = False
    """Whether pages of several blocks are gone over, and not their blocks."""

    def position_of(self, slot: Expr) -> Expr:
        """Where page ``slot`` of the page tile stands."""
        return T.min(self.start + slot, self.last)


def rolled(dims: list[int], body: Callable[[Index], None], prefix: str) -> None:
    """Loops over ``dims`` that stay loops: unrolled, what they load ahead would not fit the registers."""

    def level(done: Index) -> None:
        if len(done) == len(dims):
            body(done)
        elif dims[len(done)] == 1:
            level([*done, i32(0)])
        else:
            with loop(f"{prefix}{len(done)}", dims[len(done)], rolled=True) as v:
                level([*done, v])

    level([])


@dataclass(frozen=True)
class LaneTiles(GpuTiles):
    """Each lane has one page, and computes it in plain loops.

    Where a page tile has few pages, the lanes that repeat one may share the results of a fold, and then give each other
    theirs; 8 pages:

        lane      0 .. 7     8 .. 15    16 .. 23   24 .. 31
        page      0 .. 7     0 .. 7     0 .. 7     0 .. 7
        result    0, 4, ..   1, 5, ..   2, 6, ..   3, 7, ..
    """

    lane: Expr = 0
    pages: int = WARP
    """Pages that lanes share so; all lanes take part then."""

    def fold(self, fold: Fold) -> None:
        if self.pages < WARP and fold.results > 1 and fold.terms >= LONG:
            self._share(fold)
            return
        acc = local("acc", 1, fold.kind)

        def one(i: Index) -> None:
            put(acc, fold.start, 0)
            if fold.terms:
                loops = rolled if fold.terms > RESULTS and not self._near(fold) else nest
                loops(extents(fold.red), lambda r: put(acc, fold.take(acc[0], fold.at(self, i, r)), 0), "r")
            fold.into(self, i, acc[0])

        if fold.results:
            nest(extents(fold.out), one)

    def _share(self, fold: Fold) -> None:
        """Fold with the results dealt out to the lanes that have the same page."""
        parts, slot = WARP // self.pages, remainder(self.lane, i32(self.pages))
        acc, read = local("acc", 1, fold.kind), self.stored.storages
        picked = {v: PickedStorage(s.buffer) for v, s in read.items() if isinstance(s, LaneStorage)}
        here = replace(self, values=replace(self.stored, storages={**read, **picked}))
        with loop("share", -(-fold.results // parts)) as turn:
            mine = turn * parts + quotient(self.lane, i32(self.pages))
            if fold.results % parts:
                mine = T.min(mine, i32(fold.results - 1))
            at = unflat(let("result", mine), extents(fold.out))
            put(acc, fold.start, 0)
            loops = rolled if not self._near(fold) else nest
            loops(extents(fold.red), lambda r: put(acc, fold.take(acc[0], fold.at(here, at, r)), 0), "r")
            for p in range(parts):
                x = let("given", shuffle(acc[0], slot + p * self.pages))
                which = turn * parts + p
                with when(which < fold.results) if fold.results % parts else nullcontext():
                    fold.into(self, unflat(which, extents(fold.out)), x)

    def _near(self, fold: Fold) -> bool:
        """Whether it folds what tensor cores left in shared memory: unrolled, loads of several numbers overlap."""
        read = stored_values(fold.op.operands, self.stored)
        return any(isinstance(self.stored.storages[v], PageStorage) for v in read)


@dataclass(frozen=True)
class WideTiles(GpuTiles):
    """A fold over the pages of a page tile with many results: a lane takes results, and walks the pages."""

    page_tile: PageTile = field(kw_only=True)

    def fold(self, fold: Fold) -> None:
        if not fold.terms:
            return  # nothing is folded: the identity was put there
        acc = local("acc", 1, fold.kind)
        with loop("result_round", -(-fold.results // WARP)) as turn:
            result = let("result", turn * WARP + self.page_tile.lane)
            with when(result < fold.results):
                at = unflat(result, extents(fold.out))
                put(acc, fold.start, 0)
                with loop("slot", self.page_tile.count) as slot:
                    there = self.on(self.page_tile.start + slot, slot)

                    def term(r: Index, there: WideTiles = there) -> None:
                        put(acc, fold.take(acc[0], fold.at(there, at, r)), 0)

                    nest(extents(fold.red), term, "r")
                fold.into(self, at, acc[0])

    def on(self, position: Expr, slot: Expr) -> WideTiles:
        """The tiles of the page at ``position``, which is page ``slot`` of the page tile."""
        return replace(self, position=position, values=self.stored.at_slot(slot))
