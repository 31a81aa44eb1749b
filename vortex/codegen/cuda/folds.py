"""Folds and scans along the pages of a row: a warp does a slab, then the slabs are taken in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.cpu.tiles import Tiles
from vortex.codegen.cuda.block import PLAIN
from vortex.codegen.cuda.extremes import fold_on_gpu
from vortex.codegen.cuda.homes import Held, HomedValues, RowHome
from vortex.codegen.cuda.lanes import Cta, rounds_of, warp_fold, warp_prefix
from vortex.codegen.cuda.ptx import WARP, cta_sync
from vortex.codegen.cuda.rows import Memory, wide
from vortex.codegen.cuda.select_knobs import SLAB
from vortex.codegen.cuda.slab import Slab, WideTiles
from vortex.codegen.scalar import convert, number_type
from vortex.codegen.tir import F32, I32, Expr, T, cast, equal, flat, i32, let, local, loop, put, when
from vortex.codegen.values import Index, type_of
from vortex.ir.core import Op
from vortex.ir.dialects import flow


class _Along:
    """One op that crosses pages: its identity, its step, and where slabs leave their results."""

    def __init__(self, o: Op, memory: Memory) -> None:
        self.type = type_of(o.value)
        self.kind = number_type(self.type.dtype)
        self.start, self.take = fold_on_gpu(o, self.kind)
        self.numel = max(1, self.type.numel)
        self.home: Held = memory.of_slab(o)

    def set(self, x: Expr, slab: Expr, element: Expr) -> None:
        self.home.set(x if self.kind == F32 else T.reinterpret(F32, x), slab, element)

    def get(self, slab: Expr, element: Expr) -> Expr:
        word = self.home.get(slab, element)
        return word if self.kind == F32 else T.reinterpret(I32, word)

    def element(self, index: Index) -> Expr:
        return flat(index, self.type.tile)


@dataclass
class PageFolds:
    """Emits them for one row. Their order depends on the row's length alone."""

    values: HomedValues
    memory: Memory
    cta: Cta

    def fold(self, o: Op, slab: Slab, tiles: Tiles, is_page: Expr) -> None:
        """The fold of this slab's pages, beside those of other slabs."""
        along = _Along(o, self.memory)
        at = let("slab", T.truncdiv(slab.start, i32(SLAB)))
        if wide(o):
            many = WideTiles(self.values, PLAIN, i32(0), slab=slab)
            many.compute(o, lambda i, x: along.set(x, at, along.element(i)))
            return

        def keep(i: Index, x: Expr) -> None:
            whole = warp_fold(T.Select(is_page, x, along.start), along.take, f"{o.value.name}_part")
            with when(equal(self.cta.lane, i32(0))):
                along.set(whole, at, along.element(i))

        tiles.compute(o, keep)

    def finish(self, o: Op, home: RowHome, pages: Expr) -> None:
        """The slabs' results folded in one fixed tree: a warp for each element."""
        along = _Along(o, self.memory)
        slabs = let("slabs", rounds_of(pages, SLAB))
        acc = local("acc", 1, along.kind)
        with loop("result_round", -(-along.numel // self.cta.warps)) as turn:
            e = let("result", turn * self.cta.warps + self.cta.warp)
            with when(e < along.numel):
                put(acc, along.start, 0)
                with loop("slab_round", rounds_of(slabs, WARP)) as some:
                    slab = let("slab", some * WARP + self.cta.lane)
                    with when(slab < slabs):
                        put(acc, along.take(acc[0], along.get(slab, e)), 0)
                whole = warp_fold(acc[0], along.take, f"{o.value.name}_all")
                if isinstance(o, flow.ReduceMean):
                    whole = whole / _count(o, pages)
                with when(equal(self.cta.lane, i32(0))):
                    home.store(whole if along.kind == F32 else T.reinterpret(F32, whole), i32(0), i32(0), e)

    def prepare(self, o: flow.Scan, pages: Expr, place: Callable[[Expr], Tiles]) -> None:
        """For each slab, the fold of all slabs before it; ``place`` puts the lanes on the pages at a position."""
        along = _Along(o, self.memory)
        slabs = let("slabs", rounds_of(pages, SLAB))
        with loop("slab_round", rounds_of(slabs - self.cta.warp, self.cta.warps)) as turn:
            at = let("slab", turn * self.cta.warps + self.cta.warp)
            inside = let("inside", at * SLAB + self.cta.lane < pages)
            tiles = place(let("position", T.min(at * SLAB + self.cta.lane, pages - 1)))

            def part(i: Index) -> None:
                x = convert(self.values.read(o.x, tiles.full(o.x, i)), along.kind)
                whole = warp_fold(T.Select(inside, x, along.start), along.take, "part")
                with when(equal(self.cta.lane, i32(0))):
                    along.set(whole, at, along.element(i))

            tiles.each(along.type.tile, part)
        cta_sync()
        running = local("running", 1, along.kind)
        with self.cta.share("element", along.numel) as e:
            put(running, along.start, 0)
            with loop("slab", slabs) as slab:
                mine = let("mine", along.get(slab, e))
                along.set(running[0], slab, e)
                put(running, along.take(running[0], mine), 0)
        cta_sync()

    def scan(self, o: flow.Scan, slab: Slab, tiles: Tiles, is_page: Expr) -> None:
        """The scan within this slab, on top of what :meth:`prepare` left for it."""
        along = _Along(o, self.memory)
        at = let("slab", T.truncdiv(slab.start, i32(SLAB)))

        def one(i: Index) -> None:
            x = convert(self.values.read(o.x, tiles.full(o.x, i)), along.kind)
            upto = warp_prefix(T.Select(is_page, x, along.start), along.take, self.cta.lane, "running")
            before = let("carry", along.get(at, along.element(i)))
            with when(is_page):
                self.values.write(o.value, tiles.full(o.value, i), along.take(before, upto))

        tiles.each(along.type.tile, one)


def _count(o: flow.ReduceMean, pages: Expr) -> Expr:
    count = cast(F32, pages)
    for axis in o.axes:
        if isinstance(d := type_of(o.x).shape[axis], int):
            count = count * T.float32(d)
    return count
