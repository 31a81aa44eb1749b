"""The sweeps of ``select`` over the candidates of a row, by the warps of a CTA: everything from summaries to keys.

A sweep over the pages of a shortlist is the same with the list between a page and where it lies (:mod:`.lists`).

The pages of a sweep are dealt out to the warps in page tiles of 32, those of a short list in smaller ones
(:func:`vortex.schedules.page_tiles.tile_of`):

    candidates   begin ..   + 32 ..    + 64 ..    + 96 ..   + 128 ..
    warp         0          1          2          3         0          (4 warps)
    round        0          0          0          0         1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.cluster import Cluster
from vortex.codegen.cuda.cta_compute import PLAIN, Block, BlockTiles, stored_values
from vortex.codegen.cuda.pool_rows import PoolRows
from vortex.codegen.cuda.ptx import WARP, cta_sync, flat_view, quotient, warp_sync, wide
from vortex.codegen.cuda.select.kept import KeptOfPages, Loaded
from vortex.codegen.cuda.select.lane_group import LaneGroupTiles
from vortex.codegen.cuda.select.layout import Layout, Memory, RowMemory
from vortex.codegen.cuda.select.lists import Lists
from vortex.codegen.cuda.select.page_lookup import PageLookup
from vortex.codegen.cuda.select.page_reduce import PageFolds
from vortex.codegen.cuda.select.page_tile import LaneTiles, PageTile
from vortex.codegen.cuda.select.reserved import GpuReader, Reserved
from vortex.codegen.cuda.select.row_inputs import RowInputs
from vortex.codegen.cuda.select.tensor_core.contractions import Contractions
from vortex.codegen.cuda.select.tensor_core.pipeline import Pipeline
from vortex.codegen.cuda.select.topk import Choice, TopK
from vortex.codegen.cuda.storage import Arena, LaneStorage, PageStorage, PageTileStorage, StoredValues
from vortex.codegen.cuda.warp import Cta, rounds_of
from vortex.codegen.emitting import computing, emitting
from vortex.codegen.narrow import STORAGE
from vortex.codegen.scalar import convert
from vortex.codegen.sweep import (
    Here,
    Row,
    Workspace,
    key_of,
    list_of_loads,
    lists_read,
    page_ops,
    row_ops,
)
from vortex.codegen.tir import F32, I32, U32, Buffer, Expr, T, equal, i32, let, local, loop, put, when
from vortex.codegen.values import Index, pages_on, type_of
from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.op_labels import computed_with
from vortex.ir.types import S, Sym
from vortex.schedules.cuda_select import SelectKnobs
from vortex.schedules.kept_words import largest_of
from vortex.schedules.page_tiles import tile_of
from vortex.schedules.shared_sweeps import shared_sweeps

KEYED = 7
"""Page tiles whose keys are made together, where nothing else is made of them: four CTAs of an SM have registers for so
many.
"""


@dataclass(frozen=True)
class _Sweep:
    """One sweep over pages ``[begin, end)`` of an axis, as this warp takes part in it."""

    level: int
    axis: Sym
    """The pages that it goes over: the candidates, or those of a shortlist."""
    begin: Expr
    end: Expr
    rounds: Expr
    """Page tiles of this warp."""
    contractions: _Contracting | None
    later: Buffer | None = None
    """Without contractions, the physical page of this lane in the page tile that is done next, where any op asks."""
    loaded: Loaded | None = None
    """What it reads that earlier sweeps kept, where that is loaded of several page tiles together."""

    @property
    def tile(self) -> int:
        """Pages of a page tile."""
        return tile_of(self.axis)


@dataclass(frozen=True)
class _Contracting:
    """The pipeline of a sweep's contractions, and the pages that it loads next."""

    pipeline: Pipeline
    record: Buffer
    """``physical page * KV heads + head`` of this lane's page in the page tile at hand."""
    later: Buffer
    """The physical page of this lane in the page tile after it."""


@dataclass(frozen=True)
class Sweeps:
    """Everything between the summaries of a row and its keys."""

    args: Arguments
    layout: Layout
    reserved: Reserved
    memory: RowMemory
    arena: Arena
    cta: Cta
    cluster: Cluster
    knobs: SelectKnobs
    row: Row
    reader: GpuReader
    views: dict[str, Buffer]
    """Fields as rows of 32-bit words, by buffer."""
    pool_rows: dict[str, PoolRows]
    """The rows of pools that tensor cores contract."""
    values: StoredValues
    """As they are read where no page is at hand; their storages fill up as ops are computed."""
    folds: PageFolds
    kept: KeptOfPages
    block: Block
    inputs: RowInputs
    lists: Lists
    lookup: PageLookup
    prepared: dict[int, Pipeline]
    """The contractions whose fragments are made behind the first loads of all, by sweep."""
    done: int
    """How many sweeps there were before :meth:`rest`: none where even the first is left to it."""

    @classmethod
    def enter(
        cls,
        args: Arguments,
        reserved: Reserved,
        memory: Memory,
        cluster: Cluster,
        knobs: SelectKnobs,
        row: Row,
        on_chip: Expr,
    ) -> Sweeps:
        """Begin with a row; ``on_chip`` tells whether what is kept of its pages fits into shared memory."""
        cta = cluster.cta
        layout, arena = memory.layout, memory.arena
        of_row = RowMemory(memory, row.index, on_chip)
        workspace = Workspace(args, layout.page_words, wide(row.index))
        loads = [o for o in layout.f.ops if isinstance(o, page.Load) and page.is_paged(layout.program, o)]
        pools, views = {}, {}
        for load in loads:
            if page.is_summary(layout.program, load):
                views[load.buffer] = flat_view(args.buffers[f"field.{load.buffer}"], U32, 16)
            else:
                t = args.type_of(load.buffer)
                pools[load.buffer] = flat_view(args.buffers[load.buffer], STORAGE[t.dtype.name], t.dtype.bytes)
        reader = GpuReader(args, row, workspace, arena, reserved.inputs, pools)
        leaves = {**args.place(row.head), "page_count": row.scored, "first_page": row.first}
        values = StoredValues(reader.load, constants=args.constants, leaves=leaves, parameters=args.parameters)
        folds = PageFolds(values, of_row, cta)
        block = Block(values, BlockTiles(values, PLAIN, cta=cta))
        kept = KeptOfPages(layout, of_row, values)
        for o in layout.kept():
            kept.close(o)
        tiles = reserved.page_tiles
        for places, words in ((tiles.of_candidates, tiles.candidate_words), (tiles.of_lists, tiles.list_words)):
            for v, at in places.items():
                base = let(f"{v.name}_slab", cta.warp * words + (reserved.page_tiles_at + at))
                if (pitch := tiles.by_page.get(v)) is None:
                    values.storages[v] = PageTileStorage(arena, base, tile_of(layout.swept(v)))
                else:
                    values.storages[v] = PageStorage(arena, base, pitch)
        inputs = RowInputs(args, reserved.inputs, arena, cta, row)
        lists = Lists.open(layout, reserved, of_row, cluster, row, values, knobs.keys * knobs.threads)
        lookup = PageLookup(args, row)
        contracted = {m.load.load.buffer for m in layout.matrices} - views.keys()
        pool_rows = {name: PoolRows(args, name, flat_view(args.buffers[name], U32, 16)) for name in sorted(contracted)}
        return cls(
            args, layout, reserved, of_row, arena, cta, cluster, knobs, row, reader, views, pool_rows, values, folds,
            kept, block, inputs, lists, lookup, {}, int(not _axis(layout, 0).listed),
        )  # fmt: skip

    def choice(self, o: flow.Part, topk: TopK, most: Expr) -> Choice:
        """A part of the selection, where all parts together may take ``most`` pages; after all sweeps."""
        if o.counted is not None:
            self.block.before([o.counted])
        return self.lists.choice(o, topk, most)

    # the sweeps in order

    def first(self, begin: Expr, end: Expr, wait: Callable[[], None]) -> None:
        """Do what needs no other page: sweep 0 over candidates ``[begin, end)``, and a barrier.

        Until it calls ``wait`` it reads what ``plan`` wrote and nothing else.
        """
        if not self.done:
            wait()
            self.inputs.put(self.inputs.ask())
            cta_sync()
            return
        each = _axis(self.layout, 0).blocks
        # items begin and end with a page
        sweep = self._open(0, begin, end) if each == 1 else self._open(0, quotient(begin, each), quotient(end, each))
        wait()
        asked = self.inputs.ask()
        self._fill(sweep)
        self.inputs.put(asked)
        self._per_row(0, begin)
        self.block.sync()
        if self.layout.staging.loops:
            self._prepare(sweep)
            self._per_page(sweep)
        self.cluster.sync()

    def rest(self, topk: TopK | None) -> None:
        """Do all later sweeps, over the whole row; then all threads find all keys."""
        self._later(range(self.done, self.layout.staging.loops + 1), topk)

    def share(self, topk: TopK | None) -> Sweeps:
        """Do those later sweeps that a cluster shares; what comes back does the rest in one of its CTAs."""
        end = max(self.done, shared_sweeps(self.layout.program, self.layout.f))
        self._later(range(self.done, end), topk)
        alone = replace(self.cluster, rank=i32(0), ctas=1)
        return replace(self, cluster=alone, lists=replace(self.lists, cluster=alone), done=end)

    def _later(self, levels: range, topk: TopK | None) -> None:
        """Do these sweeps; behind the last of all there is what is computed of them for the row."""
        staging = self.layout.staging
        for level in levels:
            self.lists.before_read(level, topk)
            sweep = self._open(level, i32(0), pages_on(_axis(self.layout, level), self.row.scored))
            self._fill(sweep)
            self._per_row(level, i32(0))
            if level < staging.loops:
                for o in self.layout.f.ops:
                    if isinstance(o, flow.Scan) and o.crosses_pages() and staging.loop[o] == level:
                        self.block.sync()
                        with emitting(o):
                            self.folds.prepare(o, sweep.end, self._lanes_on)
                self.block.sync()
                self._per_page(sweep)
                if level + 1 < staging.loops or self._completed(level + 1) or self.layout.selection is not None:
                    self.cluster.sync()

    def _completed(self, level: int) -> list[Op]:
        """Ops with a result for the row whose operands are complete after sweep ``level - 1``."""
        known = self.layout.staging.level
        return [o for o in self.layout.f.ops if o.result in self.reserved.rows and known[o.value] == level]

    def _per_row(self, level: int, begin: Expr) -> None:
        """Compute what is ready once for the row before sweep ``level``; the item that ``begin``s at 0 stores it."""
        for o in row_ops(self.layout.f, self.layout.staging, level):
            if isinstance(o, page.Store):
                self.block.before_copy(o.x)
                if self._is_state(o):
                    # all threads are done with what is there
                    cta_sync()
                with self.cluster.one_for_all(), when(equal(begin, i32(0))):
                    self.reader.store(o, self.block.tiles)
                continue
            self.values.storages[o.value] = self.reserved.rows[o.value]
            if o.crosses_pages():
                with emitting(*self._found_with(o)):
                    self.folds.finish(o, self.reserved.rows, self.row.scored)
                self.block.fresh.add(o.value)
            else:
                self.block.compute(o)

    # one sweep

    def _open(self, level: int, begin: Expr, end: Expr) -> _Sweep:
        """Find this warp's pages of a sweep, before what is computed once for the row."""
        axis = _axis(self.layout, level)
        page_tiles = let("slabs", rounds_of(end - begin, tile_of(axis)))
        rounds = let("rounds", rounds_of(page_tiles - self.cluster.warp, self.cluster.warps))
        work = self.reserved.contractions.get(level)
        ops = page_ops(self.layout.f, self.layout.staging, level)
        if work is None and (level or not self._look_up(ops)):
            return _Sweep(level, axis, begin, end, rounds, None, None, self._loaded(level))
        later = local("page_later", 1, I32)
        put(later, i32(0), 0)
        if work is None:
            sweep = _Sweep(level, axis, begin, end, rounds, None, later)
            with when(rounds > 0):
                put(later, self._physical(sweep, i32(0)), 0)
            return sweep
        record = local("record_here", 1, I32)
        put(record, i32(0), 0)
        pipeline = self.prepared.get(level) or self._pipeline(work)
        sweep = _Sweep(level, axis, begin, end, rounds, _Contracting(pipeline, record, later))
        with when(rounds > 0):
            put(record, self.lookup.record(sweep.axis, self._physical(sweep, i32(0))), 0)
            put(later, self._physical(sweep, i32(1)), 0)
        return sweep

    def _pipeline(self, work: Contractions) -> Pipeline:
        return Pipeline.open(work, self.arena, self.cta, self.views, self.pool_rows)

    def _prepare(self, sweep: _Sweep) -> None:
        """Make the fragments of a first sweep, whose loads are on their way, and those of sweeps over lists in which
        numbers of the row alone are multiplied: the last CTA has no time for them.
        """
        staging = self.layout.staging
        early = {
            level: self._pipeline(work)
            for level, work in self.reserved.contractions.items()
            if level and _axis(self.layout, level).listed and not any(staging.level[m.row] for m in work.matrices)
        }
        if sweep.contractions is not None:
            early = {sweep.level: sweep.contractions.pipeline, **early}
        self.prepared.update(early)
        if early:
            self._make_fragments([*early.values()])

    def _make_fragments(self, pipelines: Sequence[Pipeline]) -> None:
        """Make what tensor cores multiply the pages with; then all threads find it."""
        for pipeline in pipelines:
            pipeline.factors.find(self.values)
        for pipeline in pipelines:
            pipeline.fragments.make(self.values)
        cta_sync()

    def _fill(self, sweep: _Sweep) -> None:
        """Start the first loads of a sweep: of its contractions, or of what earlier sweeps kept."""
        if sweep.loaded is not None:
            self._load_kept(sweep, sweep.loaded, i32(0))
        if sweep.contractions is not None:
            with when(sweep.rounds > 0):
                sweep.contractions.pipeline.fill(sweep.contractions.record[0])

    def _start(self, sweep: _Sweep, turn: Expr) -> Expr:
        """The first page of this warp's page tile number ``turn``."""
        return (turn * self.cluster.warps + self.cluster.warp) * sweep.tile + sweep.begin

    def _physical(self, sweep: _Sweep, turn: Expr) -> Expr:
        """The physical page of this lane in the warp's page tile ``turn``, or its physical block where pages have
        several; beyond the last page, the last.
        """
        position = T.min(self._start(sweep, turn) + self._slot(sweep), sweep.end - 1)
        return self.lookup.physical(sweep.axis, self.lists.candidate(sweep.axis, position))

    def _slot(self, sweep: _Sweep) -> Expr:
        """Which page of a page tile this lane has; lanes beyond the last begin with the first again."""
        return self.cta.lane if sweep.tile == WARP else T.bitwise_and(self.cta.lane, i32(sweep.tile - 1))

    def _per_page(self, sweep: _Sweep) -> None:
        """Do the ops of a sweep for all of this warp's page tiles."""
        ops = page_ops(self.layout.f, self.layout.staging, sweep.level)
        if not ops:
            return
        work = sweep.contractions
        if work is not None:
            if sweep.level not in self.prepared:
                self._make_fragments([work.pipeline])
            work.pipeline.factors.take()
        looks_up = self._look_up(ops)
        if sweep.later is not None and all(isinstance(o, flow.Ranking) for o in ops):
            self._keys_together(sweep, ops)
            return
        if sweep.loaded is not None:
            self._several_together(sweep, ops, sweep.loaded)
            return
        with loop("slab_round", sweep.rounds) as turn:
            page_tile = self._page_tile(sweep, turn, looks_up=looks_up)
            if work is not None and self._shares(ops):
                # the page tile before is done with
                warp_sync()
            if work is not None:
                self._contract(sweep, work, page_tile, turn)
            self._on_page_tile(ops, page_tile)

    def _keys_together(self, sweep: _Sweep, ops: Sequence[Op]) -> None:
        """Make the keys of page tiles of which nothing else is made, several together: their loads are all on their way
        before the first is used.
        """
        scores = local("scores_of_tiles", len(ops) * KEYED)
        with loop("slab_round", rounds_of(sweep.rounds, KEYED)) as turn:
            page_tiles = [self._page_tile(sweep, turn * KEYED + i, looks_up=True, together=True) for i in range(KEYED)]
            # ptxas may well look a page up, wait for what lies there, and then look the next one up
            warp_sync()
            for i, page_tile in enumerate(page_tiles):
                for j, o in enumerate(ops):
                    assert isinstance(o, flow.Ranking)
                    with computing(o):
                        put(scores, self._score(o, self._lanes(page_tile)), i * len(ops) + j)
            for i, page_tile in enumerate(page_tiles):
                with when(page_tile.count > 0):
                    for j, o in enumerate(ops):
                        assert isinstance(o, flow.Ranking)
                        with emitting(o):
                            key = let("key", key_of(o, scores[i * len(ops) + j]))
                            self._put_key(o, key, self._lanes(page_tile), page_tile.is_page)

    def _several_together(self, sweep: _Sweep, ops: list[Op], loaded: Loaded) -> None:
        """Do the ops of a sweep that reads what earlier ones kept: of several page tiles it is loaded together."""
        many = len(loaded.tiles)
        rounds = let("several_rounds", rounds_of(sweep.rounds, many))
        with loop("slab_rounds", rounds) as some:
            for n, here in enumerate(loaded.tiles):
                turn = some * many + n
                with when(turn < sweep.rounds):
                    self.values.storages.update({o.value: registers for o, registers in here.items()})
                    self._on_page_tile(ops, self._page_tile(sweep, turn, looks_up=False))
            for o in loaded.ops:
                self.kept.close(o)
            with when(some + 1 < rounds):
                self._load_kept(sweep, loaded, some + 1)

    def _load_kept(self, sweep: _Sweep, loaded: Loaded, some: Expr) -> None:
        """Load what earlier sweeps kept of several page tiles of this warp."""
        turns = [some * len(loaded.tiles) + n for n in range(len(loaded.tiles))]
        self.kept.load(loaded, [T.min(self._start(sweep, t) + self.cta.lane, sweep.end - 1) for t in turns])

    def _loaded(self, level: int) -> Loaded | None:
        """Registers for what sweep ``level`` reads that earlier ones kept, where it reads nothing else of pages."""
        ops = page_ops(self.layout.f, self.layout.staging, level)
        kept = self.kept.loaded(ops, level)
        if not kept or level in self.reserved.contractions or _axis(self.layout, level).listed:
            return None
        return None if self._look_up(ops) else self.kept.registers(kept)

    def _page_tile(self, sweep: _Sweep, turn: Expr, *, looks_up: bool, together: bool = False) -> PageTile:
        """Bind the pages of this warp's page tile number ``turn``; ``together`` with others rather than in turn."""
        start = let("start", self._start(sweep, turn))
        count = let("count", T.min(i32(sweep.tile), sweep.end - start))
        lane, last, slot = self.cta.lane, let("last", sweep.end - 1), self._slot(sweep)
        position = let("position", T.min(start + slot, last))
        is_page = let("is_page", lane < count)
        found = {v: let("near", self.values.read(v, [position])) for v in lists_read(self.layout.f, sweep.axis)}
        if not looks_up:
            return PageTile(sweep.tile, start, count, lane, slot, last, position, is_page, found)
        by = list_of_loads(self.layout.program, self.layout.f, sweep.axis)
        if sweep.later is not None and not together:
            here = local("page", 1, I32)
            put(here, sweep.later[0], 0)
            put(sweep.later, self._physical(sweep, turn + 1), 0)
            physical = here[0]
        else:
            physical = let(
                "page", self._physical(sweep, turn) if by is None else self.lookup.physical(sweep.axis, found[by])
            )
        record = let("record_of_lane", self.lookup.record(sweep.axis, physical))
        candidate = position if by is None else found[by]
        whole = sweep.axis.blocks > 1
        looked_up = candidate, physical, record, whole
        return PageTile(sweep.tile, start, count, lane, slot, last, position, is_page, found, *looked_up)

    def _contract(self, sweep: _Sweep, work: _Contracting, page_tile: PageTile, turn: Expr) -> None:
        """Do the contractions of a page tile, and start the loads of the next."""

        def advance() -> None:
            put(work.record, self.lookup.record(sweep.axis, work.later[0]), 0)
            put(work.later, self._physical(sweep, turn + 2), 0)

        def keep(v: Value, index: Index, slot: Expr, x: Expr) -> None:
            self.values.at_slot(slot).write(v, index, x)

        work.pipeline.run(page_tile, work.record, advance, turn + 1 < sweep.rounds, keep)

    def _look_up(self, ops: Sequence[Op]) -> bool:
        """Whether any of these reads a summary where it lies, other than for tensor cores."""
        contracted = self.layout.contracted
        return any(self._looks_up(v) for o in ops if o not in contracted for v in o.operands)

    def _looks_up(self, v: Value) -> bool:
        """Whether reading ``v`` reads a summary where it lies."""
        if v in self.values.storages or v.owner is None:
            return False
        o = v.owner
        if isinstance(o, page.Load):
            return page.is_paged(self.layout.program, o)
        kept = o.notes.get("in") in ("tile", "scratch")
        return not kept and any(self._looks_up(x) for x in o.operands)

    def _shares(self, ops: list[Op]) -> bool:
        """Whether lanes leave each other anything in the warp's shared memory."""
        written = {m.result for m in self.layout.matrices if m.op in ops}
        written |= {o.value for o in ops if o.result is not None}
        return any(v in self.reserved.page_tiles for v in written)

    # one page tile

    def _on_page_tile(self, ops: list[Op], page_tile: PageTile) -> None:
        """Do the ops of a sweep for one page tile, with a warp barrier where lanes read what others wrote."""
        shared = {o.value for o in ops if o.result is not None and o.value in self.reserved.page_tiles}
        in_lane = [o for o in ops if self.kept.made_by_lanes(o)]
        kept = {o.value for o in ops if o.result is not None and o.notes.get("in") == "scratch" and o not in in_lane}
        contracted = self.layout.contracted
        done = [m for m in self.layout.matrices if m.op in ops]
        written: set[Value] = {m.result for m in done}
        """Values in storages that lanes share, written since the last warp barrier."""
        if shared and not done:
            # the page tile before is done with
            warp_sync()
        for o in ops:
            if o in contracted:
                continue
            if written & stored_values(o.operands, self.values):
                warp_sync()
                written.clear()
            with emitting(*self._found_with(o)):
                self._on_op(o, page_tile)
            if o.result is not None and o.value in shared | kept:
                written.add(o.value)
        for o in in_lane:
            self.kept.close(o)

    def _found_with(self, o: Op) -> list[Op]:
        """The ops that the code of one finds: that of a softmax's sum finds the largest term, too."""
        if not isinstance(o, flow.SoftmaxSum):
            return [o]
        largest = largest_of(self.layout.f, o)
        return [*computed_with(o), *([largest] if largest else [])]

    def _on_op(self, o: Op, page_tile: PageTile) -> None:
        """Do one op for one page tile."""
        if o in self.layout.lane_groups:
            self._lane_groups(o, page_tile).compute(o)
            return
        tiles = self._lanes(page_tile)
        if isinstance(o, page.Store):
            if self._is_state(o):
                # all lanes are done with what is there
                warp_sync()
            with when(page_tile.is_page):
                self.reader.store(o, tiles)
        elif isinstance(o, flow.Ranking):
            self._write_key(o, tiles, page_tile.is_page)
        elif isinstance(o, flow.Scan) and o.carries():
            self._open_lane_storage(o)
            self.folds.scan(o, page_tile, tiles)
        elif o.carries():
            self.folds.fold(o, page_tile, tiles)
        elif self._open_lane_storage(o):
            tiles.compute(o)
        elif self.kept.made_by_lanes(o):
            self.kept.open(o)
            tiles.compute(o)
            self.kept.keep(o, page_tile.position, page_tile.is_page)
        else:
            with when(page_tile.is_page):
                # lanes beyond the last page take no part
                replace(tiles, pages=WARP).compute(o)

    def _is_state(self, o: page.Store) -> bool:
        return bool(self.layout.program.decls[o.buffer].attrs["role"] == "state")

    def _open_lane_storage(self, o: Op) -> bool:
        """Declare the registers of a value that stays with its lane; whether it does."""
        if o.notes.get("in") != "tile" or not self.layout.in_lane(o):
            return False
        self.values.storages[o.value] = LaneStorage(local(o.value.name, max(1, type_of(o.value).numel)))
        return True

    def _of_page_tile(self, page_tile: PageTile) -> StoredValues:
        """The values, which are read for the pages of a page tile."""
        here = None
        if page_tile.candidate is not None:
            here = Here(page_tile.candidate, self.lookup.place(page_tile))
        found = {v: (page_tile.position, at) for v, at in page_tile.found.items()}
        return replace(self.values, read_load=partial(self.reader.load, here=here), found=found)

    def _lanes(self, page_tile: PageTile) -> LaneTiles:
        """Tiles where each lane has its page of a page tile."""
        values = self._of_page_tile(page_tile).at_slot(page_tile.slot)
        return LaneTiles(values, PLAIN, page_tile.position, lane=page_tile.lane, pages=page_tile.pages)

    def _lanes_on(self, position: Expr) -> LaneTiles:
        """Tiles where each lane has the page at a position."""
        return LaneTiles(self.values.at_slot(self.cta.lane), PLAIN, position)

    def _lane_groups(self, o: Op, page_tile: PageTile) -> LaneGroupTiles:
        """Tiles where several lanes share a page."""
        return LaneGroupTiles(
            self._of_page_tile(page_tile),
            PLAIN,
            page_tile=page_tile,
            group=self.layout.lane_groups[o],
            views=self.views,
            in_flight=self.knobs.in_flight,
            unpacked=self.knobs.unpacked,
        )

    def _write_key(self, o: flow.Ranking, tiles: LaneTiles, is_page: Expr) -> None:
        """Make and keep the keys of the lanes' pages."""
        key = local("key", 1, U32)
        put(key, T.uint32(0), 0)
        with when(is_page), computing(o):
            put(key, key_of(o, self._score(o, tiles)), 0)
        self._put_key(o, key[0], tiles, is_page)

    def _score(self, o: flow.Ranking, tiles: LaneTiles) -> Expr:
        """The score of the lane's page."""
        return convert(tiles.values.read(o.scored, [tiles.position]), F32)

    def _put_key(self, o: flow.Ranking, key: Expr, tiles: LaneTiles, is_page: Expr) -> None:
        """Keep the keys of the lanes' pages; in the selection, at the places of their candidates."""
        place = tiles.position
        if isinstance(o, flow.Part) and o.near is not None and not self.lists.by_position(o):
            place = tiles.values.place(o.near, place)
        with when(is_page):
            self.lists.keys(o).set(T.reinterpret(F32, key), place)
        if o in self.lists.greatest:
            self.lists.greatest[o].put(T.Select(is_page, key, T.uint32(0)), self.cta, tiles.position)


def _axis(layout: Layout, level: int) -> Sym:
    """The pages that a sweep goes over; behind the last sweep, the candidates."""
    axes = layout.staging.axes
    return axes[level] if level < len(axes) else S
