"""``select`` on a GPU: a CTA takes a work item, scores its pages page tile by page tile, and picks the best of the row.

Items of one row meet by arrival: each does the first pass over its pages, and the one that comes last does
whatever is left (statistics over all pages, later passes, the choice). Nothing waits for another CTA. A row of one
item keeps all it needs in shared memory if that fits, and otherwise in its workspace, as items that meet do.
"""

from __future__ import annotations

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.plan import part_pages
from vortex.codegen.cuda.ptx import (
    WARP,
    cta_sync,
    early,
    overlap_begin,
    overlap_launch,
    overlap_wait,
    ptx,
    quotient,
    remainder,
)
from vortex.codegen.cuda.select.layout import Layout, Memory
from vortex.codegen.cuda.select.sweeps import Passes
from vortex.codegen.cuda.select.topk import TopK, keep_all
from vortex.codegen.cuda.storage import Arena, StoredValues
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.cuda.work_list import HEADER, PART_BITS
from vortex.codegen.tir import I32, Expr, T, equal, i32, let, local, put, when
from vortex.codegen.tir import choose as branch
from vortex.ir.core import Function, Module
from vortex.schedules.cuda_select import SelectKnobs
from vortex.schedules.knobs import read_knobs


def emit_select(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order."""
    args = Arguments(program)
    args.of_select(f, work_list=True)
    layout = Layout(program, f)
    knobs = read_knobs(SelectKnobs, f.attrs.get("schedule", {}))
    overlap_launch(knobs.overlap)
    T.device_entry()
    if knobs.residents:
        with T.attr({"tirx.launch_bounds_min_blocks_per_sm": knobs.residents}):
            _Item(args, layout, knobs).emit()
    else:
        _Item(args, layout, knobs).emit()
    return args.names


class _Item:
    """The body of one CTA."""

    def __init__(self, args: Arguments, layout: Layout, knobs: SelectKnobs) -> None:
        self.args, self.layout, self.knobs = args, layout, knobs

    def emit(self) -> None:
        args, knobs = self.args, self.knobs
        heads = args.size("Hkv")
        place = let("cta", T.cta_id([(args.size("N") - HEADER) * heads]))
        warp, lane = let("warp", T.warp_id([knobs.threads // WARP])), let("lane", T.lane_id([WARP]))
        self.cta = Cta(warp, lane, let("thread", warp * WARP + lane), knobs.threads)
        arena = Arena()
        memory = Memory(self.layout, args, arena, knobs)
        values = StoredValues(lambda o, i: self.passes.load(o, i))
        self.passes = Passes(args, self.layout, memory, arena, self.cta, knobs, values)
        self.topk = TopK(self.cta, arena, knobs.keys) if self.layout.selection is not None else None
        arrived = arena.take(1)
        arena.open()
        item, self.h = let("item", quotient(place, heads)), let("h", remainder(place, heads))
        overlap_begin(knobs.overlap)
        work, plan = args.buffers["work"], args.buffers["plan"]
        # three loads at once, whether or not there is an item
        items, entry, size = (
            early(n, work, i32(0), at) for n, at in (("items", i32(0)), ("entry", item + HEADER), ("size", i32(1)))
        )
        with when(item < items):
            self.r = let("r", T.shift_right(entry, i32(PART_BITS)))
            part = let("part", T.bitwise_and(entry, i32((1 << PART_BITS) - 1)))
            self.pages, kept, self.first, self.scored = (
                early(n, plan, i32(at), self.r) for at, n in enumerate(("pages_of_row", "kept", "first", "scored"))
            )
            self.best = let("best", kept - (self.pages - self.scored))
            with branch(self.scored > 0) as (then, other):
                with then():
                    self._score(memory, arena, part, size, arrived)
                with other():
                    self._nothing_scored()

    def _wait(self) -> None:
        overlap_wait(self.knobs.overlap)

    def _nothing_scored(self) -> None:
        self._wait()
        if self.topk is None:
            T.evaluate(0)
            return
        a = self.args
        keep_all(self.cta, a.buffers["pages"], a.buffers["counts"], self.r, self.h, self.pages, a.size("K"))

    def _score(self, memory: Memory, arena: Arena, part: Expr, size: Expr, arrived: int) -> None:
        row = let("row", self.r * self.args.size("Hkv") + self.h)
        size = part_pages(self.scored, size)
        parts = let("parts", quotient(self.scored + size - 1, size))
        begin = let("begin", part * size)
        end = let("end", T.min(begin + size, self.scored))
        memory.enter(row, let("on_chip", T.And(equal(parts, i32(1)), self.scored <= memory.chip_pages)))
        self.passes.enter(self.r, self.h, row, self.first, self.scored)
        self.passes.first(begin, end, self._wait)
        with when(parts > 1):
            self._arrive(arena, row, parts, arrived)
        with when(T.Or(equal(parts, i32(1)), equal(arena.i32[arrived], parts - 1))):
            self.passes.rest()
            if self.topk is not None:
                self.topk.keys = memory.of_page(int(self.layout.f.attrs["keys"]))
                self.topk.write(
                    self.args.buffers["pages"], self.args.buffers["counts"], self.r, self.h,
                    self.best, self.first, self.scored, self.pages, self.args.size("K"),
                )  # fmt: skip

    def _arrive(self, arena: Arena, row: Expr, parts: Expr, arrived: int) -> None:
        """Count this item in; arena[arrived] = how many came before, and the counter is 0 again after the last."""
        with when(equal(self.cta.thread, i32(0))):
            before = local("before", 2, I32)
            arrivals = self.args.buffers["arrivals"]
            # releases what the barrier before gathered from all threads, acquires what others released
            ptx("atom.acq_rel.gpu.global.add.s32", before[0], arrivals.ptr_to([row]), i32(1))
            put(arena.i32, before[0], arrived)
            with when(equal(before[0], parts - 1)):
                put(arrivals, i32(0), row)
        cta_sync()
