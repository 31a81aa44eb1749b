"""``select`` on a GPU: a CTA takes a work item, scores its pages page tile by page tile, and picks the best of the row.

Items of one row meet by arrival: each does the first sweep over its pages, and the one that comes last does whatever
is left (statistics over all pages, later sweeps, the choice). Nothing waits for another CTA. A row of one item keeps
all it needs in shared memory if that fits, and otherwise in its workspace, as items that meet do.

The last CTAs of the grid take in the step's new tokens where the caller gives some (``row_offsets`` of more than one
number), one for each row: :mod:`vortex.schedules.taken_in` says why they may run beside the others. They are a short
tail where items fill the device. Few of them, each with several rows, were a longer one: on an H200 a layer of
128 x 8K took 162 us with at most 64 of them, 141 with one for each row (2026-11-30).
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.budgets import FIRST, KEPT, PAGES, SCORED
from vortex.codegen.cuda.append import Appending, NewTokens
from vortex.codegen.cuda.arrival import arrive
from vortex.codegen.cuda.ptx import (
    cta_sync,
    early,
    overlap_begin,
    overlap_launch,
    overlap_wait,
    quotient,
    remainder,
)
from vortex.codegen.cuda.select.layout import Layout, Memory
from vortex.codegen.cuda.select.sweeps import Reserved, Sweeps
from vortex.codegen.cuda.select.topk import Selection, TopK
from vortex.codegen.cuda.storage import Arena
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.cuda.work_list import HEADER, SELECT, Entry, part_pages, unpack_item
from vortex.codegen.emitting import emitting
from vortex.codegen.sweep import Row, parts_of, selection_of
from vortex.codegen.tir import Expr, T, equal, i32, let, when
from vortex.codegen.tir import choose as branch
from vortex.ir.core import Function, Module
from vortex.ir.dialects import page
from vortex.schedules.cuda_select import CudaSelect, SelectKnobs, way_out
from vortex.schedules.knobs import read_knobs
from vortex.schedules.taken_in import taken_in


def emit_select(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order."""
    args = Arguments(program)
    args.of_select(f, CudaSelect.taken())
    appended = taken_in(program, f)
    if appended is not None:
        args.of_append(appended, loc=True)
    layout = Layout.of(program, f)
    knobs = read_knobs(SelectKnobs, f.attrs.get("schedule", {}))
    overlap_launch(knobs.overlap)
    T.device_entry()
    if knobs.residents:
        with T.attr({"tirx.launch_bounds_min_blocks_per_sm": knobs.residents}):
            _emit_cta(args, layout, knobs, appended)
    else:
        _emit_cta(args, layout, knobs, appended)
    return args.names


def _emit_cta(args: Arguments, layout: Layout, knobs: SelectKnobs, appended: Function | None) -> None:
    """The body of one CTA: one item of the work list, one KV head; of the last ones, the new tokens of one row."""
    heads = args.size("Hkv")
    ctas = (args.size("N") - HEADER) * heads
    place = let("cta", T.cta_id([ctas if appended is None else ctas + (args.size("B1") - 1) * heads]))
    cta = Cta.open(knobs.threads)
    arena = Arena()
    memory = Memory.reserve(layout, args, arena, knobs)
    reserved = Reserved.take(layout, arena, cta, knobs)
    chosen = parts_of(layout.f)
    topk = TopK.reserve(cta, arena, knobs.keys, chosen) if chosen or reserved.lists else None
    arrived = arena.take(1)
    appending = None if appended is None else Appending.reserve(args, appended, cta)
    if appending is not None:
        arena.words = max(arena.words, appending.arena.words)
    arena.open(CudaSelect().blamed(layout.f), way_out(layout.f))
    overlap_begin(knobs.overlap)
    item = _Item(args, layout, knobs, cta, arena, memory, reserved, topk, arrived)
    if appending is None:
        item.emit(place)
        return
    with branch(place < ctas) as (then, other):
        with then():
            item.emit(place)
        with other():
            appending.arena.share(arena)
            row = let("new_row", place - ctas)
            tokens = NewTokens.read(args, let("r", quotient(row, heads)))
            overlap_wait(knobs.overlap)
            appending.emit(tokens, let("h", remainder(row, heads)), i32(0), i32(1))


@dataclass(frozen=True)
class _Item:
    """A CTA that scores pages: what it has reserved."""

    args: Arguments
    layout: Layout
    knobs: SelectKnobs
    cta: Cta
    arena: Arena
    memory: Memory
    reserved: Reserved
    topk: TopK | None
    arrived: int
    """Where how many items of the row came before stands."""

    def emit(self, place: Expr) -> None:
        """Take the item and the KV head of this place in the grid."""
        args, layout, knobs, cta, arena, topk = self.args, self.layout, self.knobs, self.cta, self.arena, self.topk
        heads, chosen, arrived = args.size("Hkv"), parts_of(layout.f), self.arrived
        item, h = let("item", quotient(place, heads)), let("h", remainder(place, heads))
        entry = Entry.read(args.buffers["work"], SELECT, item)
        with when(item < entry.items):
            r, part = unpack_item(entry.item, "r", "part")
            plan = args.buffers["plan"]
            pages, kept, first, scored = (
                early(name, plan, i32(at), r)
                for at, name in ((PAGES, "pages_of_row"), (KEPT, "kept"), (FIRST, "first"), (SCORED, "scored"))
            )
            best = let("best", kept - (pages - scored))
            selection = Selection(cta, args.buffers["pages"], args.buffers["counts"], r, h, args.size("K"))
            with branch(scored > 0) as (then, other):
                with then():
                    row = Row(r, h, let("row", r * heads + h), first, scored)
                    each = part_pages(scored, entry.pages, page.cap_of(args.program).whole)
                    parts = let("parts", quotient(scored + each - 1, each))
                    begin = let("begin", part * each)
                    end = let("end", T.min(begin + each, scored))
                    on_chip = let("on_chip", T.And(equal(parts, i32(1)), scored <= self.memory.chip_pages))
                    sweeps = Sweeps.enter(args, self.reserved, self.memory, cta, knobs, row, on_chip)
                    sweeps.first(begin, end, lambda: overlap_wait(knobs.overlap))
                    with when(parts > 1):
                        with when(equal(cta.thread, i32(0))):
                            arrive(args.buffers["arrivals"], row.index, parts, arena.i32, arrived)
                        cta_sync()
                    # the last item of the row does the rest; arena[arrived] is how many came before it
                    with when(T.Or(equal(parts, i32(1)), equal(arena.i32[arrived], parts - 1))):
                        sweeps.rest(topk)
                        if topk is not None and chosen:
                            with emitting(selection_of(layout.f)):
                                topk.write([sweeps.choice(o, topk, best) for o in chosen], row, pages, selection)
                with other():
                    overlap_wait(knobs.overlap)
                    if chosen:
                        with emitting(selection_of(layout.f)):
                            selection.keep_all(pages)
                    else:
                        T.evaluate(0)
