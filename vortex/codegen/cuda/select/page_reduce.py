"""Folds and scans along the pages of a row: a warp does a page tile, then the results of the page tiles are folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vortex.codegen.cuda.cta_compute import PLAIN
from vortex.codegen.cuda.minmax import fold_on_gpu
from vortex.codegen.cuda.ptx import WARP, cta_sync
from vortex.codegen.cuda.select.layout import RowMemory
from vortex.codegen.cuda.select.page_tile import PageTile, WideTiles
from vortex.codegen.cuda.select.softmax_sums import SoftmaxSums
from vortex.codegen.cuda.storage import Held, RowStorage, StoredValues
from vortex.codegen.cuda.warp import Cta, rounds_of, warp_fold, warp_prefix
from vortex.codegen.scalar import convert, number_type
from vortex.codegen.sweep import mean_count
from vortex.codegen.tiles import Take, Tiles
from vortex.codegen.tir import F32, I32, Expr, T, equal, flat, i32, let, local, loop, put, when, word_of
from vortex.codegen.values import Index, pages_on, type_of
from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow
from vortex.ir.staging import axis_of
from vortex.ir.types import TensorType
from vortex.schedules.kept_words import found_beside, largest_of
from vortex.schedules.page_tiles import tile_of, wide


@dataclass(frozen=True)
class _Along:
    """One op that folds along the pages: where its fold starts, its step, and where page tiles leave their results."""

    op: Op
    kind: str
    """The TVM type that is computed in."""
    start: Expr
    take: Take
    storage: Held

    @classmethod
    def of(cls, o: Op, memory: RowMemory) -> _Along:
        kind = number_type(type_of(o.value).dtype)
        return cls(o, kind, *fold_on_gpu(o, kind), memory.of_page_tile(o))

    @property
    def tile(self) -> int:
        """Pages of a page tile."""
        axis = axis_of(self.op)
        assert axis is not None
        return tile_of(axis)

    @property
    def type(self) -> TensorType:
        return type_of(self.op.value)

    @property
    def numel(self) -> int:
        return max(1, self.type.numel)

    def set(self, x: Expr, page_tile: Expr, element: Expr) -> None:
        """Leave the result of a page tile; integers are kept bit by bit."""
        self.storage.set(x if self.kind == F32 else word_of(x), page_tile, element)

    def get(self, page_tile: Expr, element: Expr) -> Expr:
        """The result that a page tile left."""
        word = self.storage.get(page_tile, element)
        return word if self.kind == F32 else T.reinterpret(I32, word)

    def element(self, index: Index) -> Expr:
        return flat(index, self.type.tile)


@dataclass(frozen=True)
class PageFolds:
    """Emits the folds and scans along the pages of one row. Their order depends on the row's length alone.

    pages         0 .. 31     32 .. 63    64 .. 95   ..    (of a short list, fewer pages a page tile)
    a warp does   page tile 0 page tile 1 page tile 2 ..   fold: 32 pages in one tree, over the lanes
    then          one result for each page tile            finish: one tree, over page tiles
                  carry into each page tile                prepare, scan: the fold of all page tiles before it
    """

    values: StoredValues
    memory: RowMemory
    cta: Cta

    def fold(self, o: Op, page_tile: PageTile, tiles: Tiles) -> None:
        """Fold the pages of a page tile, beside those of other page tiles."""
        if isinstance(o, flow.SoftmaxSum):
            SoftmaxSums(self.memory, self.cta).fold(o, page_tile, tiles)
            return
        if found_beside(self.memory.memory.layout.f, o) is not None:
            return
        along = _Along.of(o, self.memory)
        at = let("slab", T.truncdiv(page_tile.start, i32(along.tile)))
        if wide(o):
            many = WideTiles(tiles.values, PLAIN, i32(0), page_tile=page_tile)
            many.compute(o, lambda i, x: along.set(x, at, along.element(i)))
            return

        def keep(i: Index, x: Expr) -> None:
            whole = warp_fold(T.Select(page_tile.is_page, x, along.start), along.take, f"{o.value.name}_part")
            with when(equal(self.cta.lane, i32(0))):
                along.set(whole, at, along.element(i))

        tiles.compute(o, keep)

    def finish(self, o: Op, rows: Mapping[Value, RowStorage], candidates: Expr) -> None:
        """Fold the page tiles' results of a row in one fixed tree, for its place in ``rows``: a warp for an element."""
        if isinstance(o, flow.SoftmaxSum):
            largest = largest_of(self.memory.memory.layout.f, o)
            beside = rows[largest.value] if largest is not None else None
            SoftmaxSums(self.memory, self.cta).finish(o, rows[o.value], beside, candidates)
            return
        if found_beside(self.memory.memory.layout.f, o) is not None:
            return
        storage = rows[o.value]
        along, axis = _Along.of(o, self.memory), axis_of(o)
        assert axis is not None
        page_tiles = let("slabs", rounds_of(pages_on(axis, candidates), along.tile))
        acc = local("acc", 1, along.kind)
        with loop("result_round", -(-along.numel // self.cta.warps)) as turn:
            e = let("result", turn * self.cta.warps + self.cta.warp)
            with when(e < along.numel):
                put(acc, along.start, 0)
                with loop("slab_round", rounds_of(page_tiles, WARP)) as some:
                    page_tile = let("slab", some * WARP + self.cta.lane)
                    with when(page_tile < page_tiles):
                        put(acc, along.take(acc[0], along.get(page_tile, e)), 0)
                whole = warp_fold(acc[0], along.take, f"{o.value.name}_all")
                if isinstance(o, flow.ReduceMean):
                    whole = whole / mean_count(o, candidates)
                with when(equal(self.cta.lane, i32(0))):
                    storage.store(whole if along.kind == F32 else word_of(whole), i32(0), i32(0), e)

    def prepare(self, o: flow.Scan, pages: Expr, place: Callable[[Expr], Tiles]) -> None:
        """Leave for each page tile the fold of all page tiles before it.

        ``place`` gives the tiles whose lanes have the pages at a position.
        """
        along = _Along.of(o, self.memory)
        page_tiles, slot = let("slabs", rounds_of(pages, along.tile)), self.cta.lane
        with loop("slab_round", rounds_of(page_tiles - self.cta.warp, self.cta.warps)) as turn:
            at = let("slab", turn * self.cta.warps + self.cta.warp)
            here = at * along.tile + slot < pages
            inside = let("inside", here if along.tile == WARP else T.And(slot < along.tile, here))
            tiles = place(let("position", T.min(at * along.tile + slot, pages - 1)))

            def part(i: Index) -> None:
                x = convert(tiles.values.read(o.x, tiles.full(o.x, i)), along.kind)
                whole = warp_fold(T.Select(inside, x, along.start), along.take, "part")
                with when(equal(self.cta.lane, i32(0))):
                    along.set(whole, at, along.element(i))

            tiles.each(along.type.tile, part)
        cta_sync()
        running = local("running", 1, along.kind)
        with self.cta.share("element", along.numel) as e:
            put(running, along.start, 0)
            with loop("slab", page_tiles) as page_tile:
                mine = let("mine", along.get(page_tile, e))
                along.set(running[0], page_tile, e)
                put(running, along.take(running[0], mine), 0)
        cta_sync()

    def scan(self, o: flow.Scan, page_tile: PageTile, tiles: Tiles) -> None:
        """Scan within a page tile, on top of what :meth:`prepare` left for it."""
        along = _Along.of(o, self.memory)
        at = let("slab", T.truncdiv(page_tile.start, i32(along.tile)))

        def one(i: Index) -> None:
            x = convert(tiles.values.read(o.x, tiles.full(o.x, i)), along.kind)
            upto = warp_prefix(T.Select(page_tile.is_page, x, along.start), along.take, self.cta.lane, "running")
            before = let("carry", along.get(at, along.element(i)))
            with when(page_tile.is_page):
                tiles.values.write(o.value, tiles.full(o.value, i), along.take(before, upto))

        tiles.each(along.type.tile, one)
