"""The passes of ``select`` over the pages of a row, as vortex.ir.staging numbers them, by the warps of a CTA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.cta_compute import PLAIN, Block, BlockTiles, stored_values
from vortex.codegen.cuda.ptx import cta_sync, early, flat_view, quotient, remainder, warp_sync, wide
from vortex.codegen.cuda.select.lane_group import unpack
from vortex.codegen.cuda.select.layout import Layout, Memory
from vortex.codegen.cuda.select.page_reduce import PageFolds
from vortex.codegen.cuda.select.page_tile import LaneGroupTiles, LaneTiles, PageTile
from vortex.codegen.cuda.select.tensor_core import MatrixPass
from vortex.codegen.cuda.storage import Arena, LaneStorage, PageTileStorage, RowStorage, StoredValues
from vortex.codegen.cuda.warp import Cta, rounds_of
from vortex.codegen.scalar import convert, number_type
from vortex.codegen.sort_key import sortable
from vortex.codegen.tiles import Tiles, require_emittable
from vortex.codegen.tir import F32, I32, U32, Expr, T, differ, equal, i32, let, local, loop, put, when
from vortex.codegen.values import Index, page_position, type_of, without_page
from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.staging import over_pages
from vortex.ir.types import TensorType, bf16, bool_, f16
from vortex.ir.types import i32 as i32_type
from vortex.schedules.cuda_select import PAGE_TILE, SelectKnobs


@dataclass
class Passes:
    """Everything between the summaries of a row and its keys."""

    args: Arguments
    layout: Layout
    memory: Memory
    arena: Arena
    cta: Cta
    knobs: SelectKnobs
    values: StoredValues

    def __post_init__(self) -> None:
        for o in self.layout.f.ops:
            require_emittable(o)
        self.row_storages: dict[Value, RowStorage] = {
            o.value: RowStorage(self.arena, self.arena.take(max(1, type_of(o.value).numel)))
            for o in self.layout.per_row()
        }
        shared = [o for o in self.layout.tiles() if not self.layout.in_lane(o)]
        self.page_tile_at: dict[Value, int] = {}
        words = 0
        for o in shared:
            self.page_tile_at[o.value] = words
            words += max(1, type_of(o.value).numel) * PAGE_TILE
        self.page_tile_words = words
        self.page_tiles_at = self.arena.take(words * self.cta.warps)
        self.staged: dict[str, int] = {}
        """Inputs of the row in shared memory, by buffer: asked for first and used last."""
        for o in self.layout.f.ops:
            if isinstance(o, page.Load) and self._stageable(o):
                self.staged.setdefault(o.buffer, self.arena.take(type_of(o.value).numel // 2))
        self.matrix: dict[int, MatrixPass] = {}
        """The tensor core work of each pass."""
        self.lane_group: LaneGroupTiles | None = None
        self.page_tile: PageTile | None = None

        for level in range(self.layout.staging.loops):
            mine = [m for o, m in self.layout.matrices.items() if self._runs(o, level)]
            if mine:
                self.matrix[level] = MatrixPass(mine, self.arena, self.cta, {}, self.knobs.ahead)
                self.matrix[level].reserve()

    def enter(self, r: Expr, h: Expr, row: Expr, first: Expr, scored: Expr) -> None:
        """Bind the row; the arena is open from here on."""
        self.r, self.h, self.row, self.first_page, self.scored = r, h, row, first, scored
        a = self.args
        self.values.constants = a.constants
        self.values.leaves = {"layer": a.scalars.get("layer"), "page_count": scored, "first_page": first}
        self.words = {
            o.buffer: flat_view(a.buffers[f"field.{o.buffer}"], U32, 16)
            for o in self.layout.f.ops
            if isinstance(o, page.Load) and self.layout.paged(o)
        }
        for matrix in self.matrix.values():
            matrix.views = self.words
        self.folds = PageFolds(self.values, self.memory, self.cta)
        self.block = Block(self.values, BlockTiles(self.values, PLAIN, cta=self.cta))
        for o in self.layout.kept():
            self.values.storages[o.value] = self.memory.of_page(o.notes["slot"])
        for v, at in self.page_tile_at.items():
            base = let(f"{v.name}_slab", self.cta.warp * self.page_tile_words + (self.page_tiles_at + at))
            self.values.storages[v] = PageTileStorage(self.arena, base)

    # memory

    def load(self, o: page.Load, index: Index) -> Expr:
        """An element as it is stored; the index has the page axis first where the load has one."""
        d = self.args.program.decls[o.buffer]
        t = type_of(o.value)
        if d.attrs["role"] == "workspace":
            return self._workspace(d.name, d.attrs["layout"] == "ragged", index, t)
        if d.name in self.staged:
            word = self.arena.u32[quotient(index[0] * t.tile[1] + index[1], i32(2)) + self.staged[d.name]]
            odd = remainder(index[1], i32(2)) > 0
            return T.Select(odd, unpack(word, 1, t.dtype), unpack(word, 0, t.dtype))
        if d.attrs["layout"] == "batched":
            return self.args.buffers[d.name][self.r, self.h * t.tile[0] + index[0], index[1]]
        if self.lane_group is not None and (found := self.lane_group.vector_element(o, index)) is not None:
            return found
        position = page_position(index, t)
        if self.page_tile is not None and position is self.in_lane:
            physical = self.physical
        else:
            physical = self.args.buffers["page_table"][self.r, self.first_page + position]
        return self.args.buffers[f"field.{d.name}"][(wide(physical), self.h, *without_page(index, t.shape))]

    def _stageable(self, o: page.Load) -> bool:
        """Whether an input of the row goes through shared memory: pairs of 16-bit numbers."""
        d, t = self.args.program.decls[o.buffer], type_of(o.value)
        return d.attrs["layout"] == "batched" and d.attrs["role"] == "input" and t.dtype in (bf16, f16) and len(
            t.tile) == 2 and t.tile[1] % 2 == 0  # fmt: skip

    def _ask_inputs(self) -> Callable[[], None]:
        """Start loading the row's inputs; what is returned puts them where they are read, behind a barrier."""
        held: list[tuple[Expr, Expr, Expr, bool]] = []
        for name, at in self.staged.items():
            d = self.args.program.decls[name]
            assert isinstance(d.type, TensorType)
            words = d.type.numel // 2
            source = flat_view(self.args.buffers[name], U32, 4)
            for turn in range(-(-words // self.cta.threads)):
                place = let("input_word", self.cta.thread + turn * self.cta.threads)
                mine = local(f"{name}_word", 2, U32)
                put(mine, source[wide(self.row) * words + wide(T.min(place, i32(words - 1)))], 0)
                held.append((place + at, mine, place < words, (turn + 1) * self.cta.threads <= words))

        def land() -> None:
            for place, mine, inside, whole in held:
                if whole:
                    put(self.arena.u32, mine[0], place)
                else:
                    with when(inside):
                        put(self.arena.u32, mine[0], place)
            if held:
                cta_sync()

        return land

    def _workspace(self, name: str, ragged: bool, index: Index, t: TensorType) -> Expr:
        word = self.args.buffers["workspace"][wide(self.row), self._word_of(name, ragged, index, t)]
        if t.dtype == bool_:
            return differ(word, T.float32(0))
        return T.reinterpret(I32, word) if t.dtype == i32_type else word

    def _word_of(self, name: str, ragged: bool, index: Index, t: TensorType) -> Expr:
        d = self.args.program.decls[name]
        inner: Expr = i32(0)
        for i, extent in zip(without_page(index, t.shape), t.tile, strict=True):
            inner = inner * extent + i
        columns = self.args.size("Pmax")
        if ragged:
            return columns * d.attrs["offset"] + page_position(index, t) * t.numel + inner
        return columns * self.layout.page_words + d.attrs["offset"] + inner

    def _store(self, o: page.Store, tiles: Tiles) -> None:
        d = self.args.program.decls[o.buffer]
        t = type_of(o.x)

        def keep(i: Index, x: Expr) -> None:
            at = self._word_of(d.name, d.attrs["layout"] == "ragged", tiles.full(o.x, i), t)
            whole = number_type(t.dtype) == F32
            word = convert(x, F32) if t.dtype == bool_ else x if whole else T.reinterpret(F32, x)
            put(self.args.buffers["workspace"], word, wide(self.row), at)

        tiles.copy(o.x, keep)

    # control

    def first(self, begin: Expr, end: Expr, wait: Callable[[], None]) -> None:
        """What needs no other page: the first pass over ``[begin, end)``, and a barrier.

        Until it calls ``wait`` it reads what ``plan`` wrote and nothing else.
        """
        land: list[Callable[[], None]] = []

        def begin_reading() -> None:
            wait()
            land.append(self._ask_inputs())

        self._open(0, begin, end, begin_reading)
        land[0]()
        self._per_row(0, begin)
        self.block.sync()
        if self.layout.staging.loops:
            self._per_page(0, begin, end)
        cta_sync()

    def rest(self) -> None:
        """All later passes, over the whole row; then all threads find all keys."""
        for level in range(1, self.layout.staging.loops + 1):
            self._open(level, i32(0), self.scored, lambda: None)
            self._per_row(level, i32(0))
            if level < self.layout.staging.loops:
                for o in self.layout.f.ops:
                    if isinstance(o, flow.Scan) and o.crosses_pages() and self.layout.staging.loop[o] == level:
                        self.block.sync()
                        self._prepare(o)
                self.block.sync()
                self._per_page(level, i32(0), self.scored)
                if level + 1 < self.layout.staging.loops or self._ready(level + 1) or self.layout.selection is not None:
                    cta_sync()

    def _ready(self, level: int) -> list[Op]:
        """Per-row ops whose operands are complete after pass ``level - 1``."""
        known = self.layout.staging.level
        return [o for o in self.layout.f.ops if o.result in self.row_storages and known[o.value] == level]

    def _per_row(self, level: int, begin: Expr) -> None:
        """What is computed once per row before pass ``level``; the item that ``begin``s at 0 stores it."""
        staging = self.layout.staging
        for o in self.layout.f.ops:
            ready = staging.level.get(o.value, 0) if o.result is not None else staging.loop[o]
            if ready != level:
                continue
            if isinstance(o, page.Store):
                if not over_pages(o.x) and isinstance(o.x.type, TensorType):
                    self.block.before_copy(o.x)
                    with when(equal(begin, i32(0))):
                        self._store(o, self.block.tiles)
            elif o.result is not None and o.value in self.row_storages:
                self.values.storages[o.value] = self.row_storages[o.value]
                if o.crosses_pages():
                    self.folds.finish(o, self.row_storages[o.value], self.scored)
                    self.block.fresh.add(o.value)
                else:
                    self.block.compute(o)

    def _runs(self, o: Op, level: int) -> bool:
        if self.layout.staging.loop.get(o) != level:
            return False
        spans = any(over_pages(v) for v in o.operands)
        if o.result is None or isinstance(o, flow.Selection):
            return spans
        return (spans and o.crosses_pages()) or (over_pages(o.result) and o.notes.get("in") in ("tile", "scratch"))

    def _open(self, level: int, begin: Expr, end: Expr, wait: Callable[[], None]) -> None:
        """Find this warp's pages of a pass and start loading, before what is computed once per row."""
        self.page_tiles = let("slabs", rounds_of(end - begin, PAGE_TILE))
        self.rounds = let("rounds", rounds_of(self.page_tiles - self.cta.warp, self.cta.warps))
        matrix = self.matrix.get(level)
        if matrix is None:
            wait()
            return
        self.record, self.later = local("record_here", 1, I32), local("page_later", 1, I32)
        put(self.record, i32(0), 0)
        put(self.later, i32(0), 0)
        matrix.open()
        with when(self.rounds > 0):
            put(self.record, self._record(self._page(i32(0), begin, end)), 0)
            put(self.later, self._page(i32(1), begin, end), 0)
        wait()
        with when(self.rounds > 0):
            matrix.fill(self.record[0])

    def _start(self, turn: Expr, begin: Expr) -> Expr:
        return (turn * self.cta.warps + self.cta.warp) * PAGE_TILE + begin

    def _page(self, turn: Expr, begin: Expr, end: Expr) -> Expr:
        """The physical page of this lane in page tile ``turn`` of the warp; beyond the last, the last."""
        position = T.min(self._start(turn, begin) + self.cta.lane, end - 1)
        return early("physical", self.args.buffers["page_table"], self.r, self.first_page + position)

    def _record(self, physical: Expr) -> Expr:
        """Where the summaries of a page lie in every field."""
        return physical * self.args.size("Hkv") + self.h

    def _per_page(self, level: int, begin: Expr, end: Expr) -> None:
        ops = [o for o in self.layout.f.ops if self._runs(o, level)]
        if not ops:
            return
        matrix = self.matrix.get(level)
        if matrix is not None:
            matrix.make_fragments(self.values)
            cta_sync()
        tabled = any(self._looks_up(v) for o in ops if o not in self.layout.matrices for v in o.operands)
        with loop("slab_round", self.rounds) as turn:
            start = let("start", self._start(turn, begin))
            count = let("count", T.min(i32(PAGE_TILE), end - start))
            page_tile = PageTile(start, count, self.cta.lane, let("last", end - 1))
            self.page_tile = page_tile
            self.in_lane = let("position", page_tile.position(self.cta.lane))
            self.is_page = let("is_page", self.cta.lane < count)
            if tabled:
                self.physical = let("page", self._page(turn, begin, end))
                page_tile.record = let("record_of_lane", self._record(self.physical))
            if matrix is not None and self._shares(ops):
                # the page tile before is done with
                warp_sync()
            if matrix is not None:
                self._matrices(matrix, page_tile, turn, begin, end)
            self._on_page_tile(ops, page_tile)
        self.page_tile = None

    def _matrices(self, matrix: MatrixPass, page_tile: PageTile, turn: Expr, begin: Expr, end: Expr) -> None:
        def advance() -> None:
            put(self.record, self._record(self.later[0]), 0)
            put(self.later, self._page(turn + 2, begin, end), 0)

        def keep(v: Value, index: Index, slot: Expr, x: Expr) -> None:
            self.values.slot = slot
            self.values.write(v, index, x)

        matrix.run(page_tile, self.record, advance, turn + 1 < self.rounds, keep)

    def _looks_up(self, v: Value) -> bool:
        """Whether reading ``v`` reads a summary where it lies."""
        if v in self.values.storages or v.owner is None:
            return False
        o = v.owner
        if isinstance(o, page.Load):
            return self.layout.paged(o)
        kept = o.notes.get("in") in ("tile", "scratch")
        return not kept and any(self._looks_up(x) for x in o.operands)

    def _shares(self, ops: list[Op]) -> bool:
        """Whether lanes leave each other anything in the warp's shared memory."""
        return any(o.result is not None and o.value in self.page_tile_at for o in ops)

    def _on_page_tile(self, ops: list[Op], page_tile: PageTile) -> None:
        shared = {o.value for o in ops if o.result is not None and o.value in self.page_tile_at}
        kept = {o.value for o in ops if o.result is not None and o.notes.get("in") == "scratch"}
        done = [o for o in ops if o in self.layout.matrices]
        written: set[Value] = {o.value for o in done}
        """Storages in the warp's shared memory that lanes wrote since the last warp barrier."""
        if shared and not done:
            # the page tile before is done with
            warp_sync()
        for o in ops:
            if o in self.layout.matrices:
                continue
            if written & stored_values(o.operands, self.values):
                warp_sync()
                written.clear()
            self._on_op(o, page_tile)
            if o.result is not None and o.value in shared | kept:
                written.add(o.value)

    def _prepare(self, o: flow.Scan) -> None:
        """What a scan carries into each page tile."""

        def place(position: Expr) -> Tiles:
            self.in_lane = position
            return self._lane_tiles()

        self.folds.prepare(o, self.scored, place)

    def _lane_tiles(self) -> Tiles:
        """Each lane has one page."""
        self.values.slot = self.cta.lane
        return LaneTiles(self.values, PLAIN, self.in_lane)

    def _on_op(self, o: Op, page_tile: PageTile) -> None:
        if o in self.layout.lane_groups:
            lane_group = LaneGroupTiles(
                self.values,
                PLAIN,
                page_tile=page_tile,
                lane_group=self.layout.lane_groups[o],
                views=self.words,
                in_flight=self.knobs.in_flight,
                unpacked=self.knobs.unpacked,
            )
            self.lane_group = lane_group
            lane_group.compute(o)
            self.lane_group = None
        elif isinstance(o, page.Store):
            with when(self.is_page):
                self._store(o, self._lane_tiles())
        elif isinstance(o, flow.Selection):
            self._write_key(o)
        elif o.carries():
            if isinstance(o, flow.Scan):
                if o.notes.get("in") == "tile" and self.layout.in_lane(o):
                    self.values.storages[o.value] = LaneStorage(local(o.value.name, max(1, type_of(o.value).numel)))
                self.folds.scan(o, page_tile, self._lane_tiles(), self.is_page)
            else:
                self.folds.fold(o, page_tile, self._lane_tiles(), self.is_page)
        else:
            if o.notes.get("in") == "tile" and self.layout.in_lane(o):
                self.values.storages[o.value] = LaneStorage(local(o.value.name, max(1, type_of(o.value).numel)))
                self._lane_tiles().compute(o)
                return
            with when(self.is_page):
                self._lane_tiles().compute(o)

    # selection

    def _write_key(self, o: flow.Selection) -> None:
        score = convert(self._lane_tiles().values.read(o.scored, [self.in_lane]), F32)
        keys = self.memory.of_page(int(self.layout.f.attrs["keys"]))
        with when(self.is_page):
            keys.set(T.reinterpret(F32, sortable(score)), self.in_lane)
