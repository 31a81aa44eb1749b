"""``select`` on a GPU: a CTA takes a work item, scores its pages page tile by page tile, and picks the best of the row.

Items of one row meet by arrival: each does the first sweep over its pages, and the one that comes last does whatever
is left (statistics over all pages, later sweeps, the choice). Nothing waits for another CTA. A row of one item keeps
all it needs in shared memory if that fits, and otherwise in its workspace, as items that meet do.

With knob ``cluster`` each row has as many CTAs, whatever ``plan`` says, which wait for each other after each sweep and
share the next one; each chooses shortlists for itself, and the first one the pages. Where rows are few and a
shortlist is long, its pages are read by more than one SM. All choose together where a row has more candidates than
the first has registers for, and a single sweep scores them (:mod:`.cluster_choice`).

The last CTAs of the grid take in the step's new tokens where the caller gives some (``row_offsets`` of more than one
number), one for each row: :mod:`vortex.schedules.taken_in` says why they may run beside the others. They are a short
tail where items fill the device. Few of them, each with several rows, were a longer one: on an H200 a layer of
128 x 8K took 162 us with at most 64 of them, 141 with one for each row (2026-11-30).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.budgets import FIRST, KEPT, PAGES, SCORED
from vortex.codegen.cuda.append import Appending, NewTokens
from vortex.codegen.cuda.arrival import arrive
from vortex.codegen.cuda.cluster import Cluster
from vortex.codegen.cuda.ptx import (
    ceil_quotient,
    cta_sync,
    early,
    overlap_begin,
    overlap_launch,
    overlap_wait,
    quotient,
    remainder,
)
from vortex.codegen.cuda.select.cluster_choice import ClusterChoice
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
from vortex.ir.dialects import flow, page
from vortex.schedules.cuda_select import CudaSelect, SelectKnobs, way_out
from vortex.schedules.knobs import read_knobs
from vortex.schedules.shared_sweeps import chosen_together
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
    each = knobs.cluster
    # whole clusters, and one where there is no request
    ctas = T.max(i32(1), args.size("B") * heads) * each if each > 1 else (args.size("N") - HEADER) * heads
    added = None if appended is None else (args.size("B1") - 1) * heads
    place = let("cta", T.cta_id([ctas if added is None else ctas + ceil_quotient(added, i32(each)) * each]))
    cta = Cta.open(knobs.threads)
    cluster = Cluster.of(cta, place, each)
    arena = Arena()
    memory = Memory.reserve(layout, args, arena, knobs)
    reserved = Reserved.take(layout, arena, cta, knobs)
    chosen = parts_of(layout.f)
    together = chosen_together(layout.f) if cluster.shared else None
    short = together is not None
    topk = TopK.reserve(cta, arena, knobs.keys, chosen, short=short) if chosen or reserved.lists else None
    arrived = arena.take(1)
    appending = None if appended is None else Appending.reserve(args, appended, cta)
    if appending is not None:
        arena.words = max(arena.words, appending.arena.words)
    arena.open(CudaSelect().blamed(layout.program, layout.f, knobs), way_out(layout.f))
    overlap_begin(knobs.overlap)
    item = _Item(args, layout, knobs, cluster, arena, memory, reserved, topk, together, arrived)
    if appending is None or added is None:
        item.emit(place)
        return
    with branch(place < ctas) as (then, other):
        with then():
            item.emit(place)
        with other():
            appending.arena.share(arena)
            row = let("new_row", place - ctas)
            with when(row < added) if each > 1 else nullcontext():
                tokens = NewTokens.read(args, let("r", quotient(row, heads)))
                overlap_wait(knobs.overlap)
                appending.emit(tokens, let("h", remainder(row, heads)), i32(0), i32(1))


@dataclass(frozen=True)
class _Item:
    """A CTA that scores pages: what it has reserved."""

    args: Arguments
    layout: Layout
    knobs: SelectKnobs
    cluster: Cluster
    arena: Arena
    memory: Memory
    reserved: Reserved
    topk: TopK | None
    together: flow.Part | None
    """What all CTAs of a row choose, where that is long."""
    arrived: int
    """Where how many items of the row came before stands."""

    def emit(self, place: Expr) -> None:
        """Take the item and the KV head of this place in the grid, or its part of a row."""
        heads = self.args.size("Hkv")
        if self.cluster.shared:
            row = let("row_of_cluster", quotient(place, i32(self.cluster.ctas)))
            with when(row < self.args.size("B") * heads):
                self._score(let("r", quotient(row, heads)), let("h", remainder(row, heads)), self._in_cluster)
            return
        item, h = let("item", quotient(place, heads)), let("h", remainder(place, heads))
        entry = Entry.read(self.args.buffers["work"], SELECT, item)
        with when(item < entry.items):
            r, part = unpack_item(entry.item, "r", "part")
            self._score(r, h, lambda of: self._as_item(of, part, entry.pages))

    def _score(self, r: Expr, h: Expr, work: Callable[[_Scored], None]) -> None:
        """Do the ``work`` on a row that has candidates; one without keeps all its pages."""
        args = self.args
        plan = args.buffers["plan"]
        pages, kept, first, scored = (
            early(name, plan, i32(at), r)
            for at, name in ((PAGES, "pages_of_row"), (KEPT, "kept"), (FIRST, "first"), (SCORED, "scored"))
        )
        best = let("best", kept - (pages - scored))
        selection = Selection(self.cluster.cta, args.buffers["pages"], args.buffers["counts"], r, h, args.size("K"))
        with branch(scored > 0) as (then, other):
            with then():
                work(_Scored(Row(r, h, let("row", r * args.size("Hkv") + h), first, scored), pages, best, selection))
            with other():
                overlap_wait(self.knobs.overlap)
                if self.topk is not None and parts_of(self.layout.f):
                    with self.cluster.one_for_all(), emitting(selection_of(self.layout.f)):
                        selection.keep_all(pages)
                else:
                    T.evaluate(0)

    def _as_item(self, of: _Scored, part: Expr, pages: Expr) -> None:
        """Score a part of the row, of ``pages`` or nearly so; the last item does the rest."""
        cta, row, scored = self.cluster.cta, of.row, of.row.scored
        each = part_pages(scored, pages, page.cap_of(self.args.program).whole)
        parts = let("parts", quotient(scored + each - 1, each))
        begin = let("begin", part * each)
        end = let("end", T.min(begin + each, scored))
        on_chip = let("on_chip", T.And(equal(parts, i32(1)), scored <= self.memory.chip_pages))
        sweeps = self._enter(row, on_chip)
        sweeps.first(begin, end, lambda: overlap_wait(self.knobs.overlap))
        with when(parts > 1):
            with when(equal(cta.thread, i32(0))):
                arrive(self.args.buffers["arrivals"], row.index, parts, self.arena.i32, self.arrived)
            cta_sync()
        # the last item of the row does the rest; arena[arrived] is how many came before it
        with when(T.Or(equal(parts, i32(1)), equal(self.arena.i32[self.arrived], parts - 1))):
            sweeps.rest(self.topk)
            self._choose(of, sweeps)

    def _in_cluster(self, of: _Scored) -> None:
        """Share all sweeps of the row."""
        sweeps = self._enter(of.row, on_chip=False)
        if self.together is not None:
            self._choose_together(of, sweeps, self.together)
            return
        sweeps.first(i32(0), of.row.scored, lambda: overlap_wait(self.knobs.overlap))
        behind = sweeps.share(self.topk)
        with self.cluster.one_for_all():
            behind.rest(self.topk)
            self._choose(of, behind)

    def _choose_together(self, of: _Scored, sweeps: Sweeps, part: flow.Part) -> None:
        """Score a row and choose its pages: all CTAs do where it is long, else the first."""
        assert self.topk is not None
        choice = ClusterChoice.open(self.cluster, self.topk.kth, self.knobs.keys, sweeps.memory.exchange())

        def wait() -> None:
            overlap_wait(self.knobs.overlap)
            choice.clear()

        sweeps.first(i32(0), of.row.scored, wait)
        behind = sweeps.share(self.topk)
        greatest, first, scored = sweeps.lists.greatest[part], of.row.first, of.row.scored
        with branch(greatest.long) as (then, other):
            with then(), emitting(selection_of(self.layout.f)):
                best = let("best_of_row", sweeps.lists.best_of(part, of.best))
                with self.cluster.one_for_all():
                    of.selection.keep_reserved(of.row, of.pages, best)
                place = of.selection.place
                choice.take(sweeps.lists.keys(part), greatest, scored, best, lambda s, n: place(first + s, first + n))
            with other(), self.cluster.one_for_all():
                behind.rest(self.topk)
                self._choose(of, behind)

    def _enter(self, row: Row, on_chip: Expr) -> Sweeps:
        return Sweeps.enter(self.args, self.reserved, self.memory, self.cluster, self.knobs, row, on_chip)

    def _choose(self, of: _Scored, sweeps: Sweeps) -> None:
        """Write the pages that the row keeps, in kernels that choose."""
        chosen = parts_of(self.layout.f)
        if self.topk is not None and chosen:
            with emitting(selection_of(self.layout.f)):
                choices = [sweeps.choice(o, self.topk, of.best) for o in chosen]
                self.topk.write(choices, of.row, of.pages, of.selection)


@dataclass(frozen=True)
class _Scored:
    """A row with candidates, and what is chosen of it."""

    row: Row
    pages: Expr
    """All pages that the row has."""
    best: Expr
    """Candidates that it may keep."""
    selection: Selection
