"""``attend`` on a GPU: split-KV attention over selected pages, one launch, merged by the last CTA of a row.

A CTA takes one KV head of an item of the work list that ``plan`` wrote. The tiles of the item are dealt out in turn to
the warps of the CTA, each of which copies its tiles through a ring of its own: no step of the loop waits for another
warp. A warp multiplies keys by queries with the tokens on M and the heads on N, so that a group of 5 costs the
arithmetic of 8 and no memory traffic beyond its own. Page ids are read while the row's count is still on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from vortex.codegen.arguments import Arguments, tensor_type
from vortex.codegen.cuda.attend.core_type import CoreType
from vortex.codegen.cuda.attend.merge import Merge, Row
from vortex.codegen.cuda.attend.queries import Queries
from vortex.codegen.cuda.attend.ring import run_ring
from vortex.codegen.cuda.attend.shared_tile import ByteTile, SharedTile
from vortex.codegen.cuda.attend.softmax import LOWEST, SoftmaxState
from vortex.codegen.cuda.attend.work_item import HeldPages, Tiling, WorkItem
from vortex.codegen.cuda.ptx import (
    TILE_TYPES,
    WARP,
    ceil_quotient,
    exp2,
    flat_view,
    mma,
    overlap_begin,
    overlap_launch,
    pack_pair,
    pick,
    ptx,
    quotient,
    registers,
    remainder,
    shuffle,
    shuffle_xor,
    warp_sync,
    wide,
    words,
)
from vortex.codegen.cuda.work_list import HEADER
from vortex.codegen.narrow import STORAGE
from vortex.codegen.tir import F32, I32, U32, Buffer, Expr, T, cast, f32, i32, let, put, when
from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Function, Module
from vortex.ir.dialects import page
from vortex.ir.types import fp8_e4m3
from vortex.schedules.cuda_attend import AttendKnobs, AttendShape, CudaAttend, attend_of, partial_words, shape_of
from vortex.schedules.knobs import read_knobs


def emit_attend(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order.

    Raises:
        VortexError: VX4006 for element types or sizes that the template does not have.
    """
    o = attend_of(f)
    shape = shape_of(program, f)
    _require(program, o, shape)
    args = Arguments(program)
    args.of_attend(o, align=16)
    args.scratch(CudaAttend.taken(), align=16, partial_words=partial_words(shape))
    knobs = read_knobs(AttendKnobs, f.attrs.get("schedule", {}))
    overlap_launch(knobs.overlap)
    T.device_entry()
    with T.attr({"tirx.launch_bounds_min_blocks_per_sm": knobs.residents}):
        _emit_cta(_Template.of(args, o, shape, knobs))
    return args.names


def _require(program: Module, o: page.Attend, shape: AttendShape) -> None:
    given, kept = ({tensor_type(program, n).dtype for n in names} for names in (("q", "out"), (o.keys, o.values)))
    types = {t.name for t in given | (set() if kept == {fp8_e4m3} else kept)}
    if len(types) != 1 or STORAGE[next(iter(types))] not in TILE_TYPES:
        why = f"attend on a GPU takes bf16 or f16, one for all but K and V in fp8; here are {', '.join(sorted(types))}"
        raise NOT_EMITTABLE.at(why=why, hint="compile with --dtype bf16")
    if shape.dim % 16 or shape.v_dim % 16 or shape.page % 8:
        why = f"attend on a GPU takes head dims in steps of 16 and pages in steps of 8; here are {shape.dim}"
        raise NOT_EMITTABLE.at(why=f"{why} and {shape.page}", hint="--target cpu has no such limit")


@dataclass(frozen=True)
class _Pool:
    """K or V in memory."""

    buffer: Buffer
    flat: Buffer
    """The same memory as one row of elements."""
    unit: Expr
    """What the stored numbers are multiples of; 1 unless they are fp8."""


@dataclass(frozen=True)
class _Template(CoreType):
    """What is known of the kernel before its first instruction."""

    args: Arguments
    shape: AttendShape
    knobs: AttendKnobs
    tiling: Tiling
    pools: tuple[_Pool, _Pool]
    """Of the keys and of the values."""
    dtype: str
    kept: str
    """Of keys and values in memory."""

    @classmethod
    def of(cls, args: Arguments, o: page.Attend, shape: AttendShape, knobs: AttendKnobs) -> _Template:
        kept = STORAGE[args.type_of(o.keys).dtype.name]
        units = [args.scale_of(name) for name in (o.keys, o.values)]
        keys, values = (
            _Pool(args.buffers[name], flat_view(args.buffers[name], kept, 16), unit)
            for name, unit in zip((o.keys, o.values), units, strict=True)
        )
        dtype = STORAGE[args.type_of("q").dtype.name]
        return cls(args, shape, knobs, Tiling(shape.page, knobs.tile), (keys, values), dtype, kept)

    @property
    def stage_size(self) -> int:
        """Elements of one stage of a ring: the keys of a tile, then its values."""
        return self.knobs.tile * (self.shape.dim + self.shape.v_dim)


@dataclass(frozen=True)
class _Shared:
    """The shared memory of a CTA: each warp has ``stages`` stages, one after another."""

    template: _Template
    arena: Buffer
    fills: Buffer
    """How many tokens of each part of each tile are the request's, by (warp, stage, part)."""
    keys: SharedTile
    values: SharedTile

    @classmethod
    def allocate(cls, t: _Template) -> _Shared:
        size = t.knobs.arena_bytes(t.shape) // t.shape.kv_bytes
        arena = T.alloc_buffer((size,), t.kept, scope="shared.dyn", align=128)
        fills = T.alloc_buffer((t.knobs.warps * t.knobs.stages * t.tiling.parts,), I32, scope="shared", align=16)
        kind = ByteTile if t.narrow else SharedTile
        keys, values = (kind(arena, t.knobs.tile, n) for n in (t.shape.dim, t.shape.v_dim))
        return cls(t, arena, fills, keys, values)

    def place(self, warp: Expr, stage: Expr) -> Expr:
        """Where a warp's stage begins, in elements."""
        return let("base", (warp * self.template.knobs.stages + stage) * self.template.stage_size)

    def values_of(self, place: Expr) -> Expr:
        """Where the values of the stage at ``place`` begin."""
        return place + self.template.knobs.tile * self.template.shape.dim

    def fill(self, warp: Expr, stage: Expr, part: int) -> Expr:
        """The index into ``fills``."""
        return (warp * self.template.knobs.stages + stage) * self.template.tiling.parts + part


def _emit_cta(t: _Template) -> None:
    """The body of one CTA: one item of the work list, one KV head."""
    args, shape, knobs, tiling, size = t.args, t.shape, t.knobs, t.tiling, t.args.size
    index, head = T.cta_id([size("N") - HEADER, size("Hkv")])
    warp, lane = T.warp_id([knobs.warps]), T.lane_id([WARP])
    shared = _Shared.allocate(t)
    overlap_begin(knobs.overlap)
    item = WorkItem.read(args, index, head, knobs.overlap)
    entries = _Entries(args, item, tiling, head, warp, lane, knobs.warps)
    logical = entries.logical(i32(0))
    tiles = let("tiles", tiling.tiles(item.end - item.begin))
    splits = item.splits()
    held = HeldPages(args, item, tiling, registers("ids", 1, I32), registers("room", 1, I32))
    with when(T.And(item.there, item.split < splits)):
        entries.hold(held, i32(0), logical)
        mine = let("mine", T.max(i32(0), ceil_quotient(tiles - warp, i32(knobs.warps))))
        queries = Queries(args, shape, shared.keys, t.dtype, t.core, t.pools[0].unit)
        fragments = queries.load(item.request, head, lane)
        heads = shape.head_tiles * 2  # of this lane
        state = SoftmaxState.start(heads, heads * shape.v_dim // 8, narrow=t.narrow)
        products = _Products(t, shared, warp, lane, fragments.words, queries.to_log2(fragments, lane), state)
        copies = _Copies(t, shared, entries, held)
        run_ring(knobs.stages, mine, copy=copies.start, use=products.take, sync=warp_sync)
        products.finish()
        row = let("row", item.request * size("Hkv") + head)
        thread = let("thread", warp * WARP + lane)
        partials = args.buffers["partials"].shape[2]
        merge = Merge(
            args=args,
            shape=shape,
            dtype=t.dtype,
            states=knobs.warps,
            heads=shape.head_tiles * 8,
            threads=knobs.warps * WARP,
            thread=thread,
            row=Row(item.request, let("q_first", head * shape.group), row),
            split=item.split,
            splits=splits,
            word=lambda split: wide(item.other(split) * size("Hkv") + head) * wide(partials),
            shared=shared.arena.view(F32),
            unit=t.pools[1].unit if t.narrow else None,
        )
        merge.emit(products.share)


@dataclass(frozen=True)
class _Entries:
    """Which entries of the list of pages a warp's tiles are about: tile ``i`` of a warp is tile
    ``warp + i * warps`` of the item.
    """

    args: Arguments
    item: WorkItem
    tiling: Tiling
    head: Expr
    warp: Expr
    lane: Expr
    warps: int

    def tile(self, i: Expr) -> Expr:
        """The number in the item of this warp's tile ``i``."""
        return self.warp + i * i32(self.warps)

    def tile_of_lane(self, start: Expr) -> Expr:
        """The tile that this lane holds a page of, ``batch`` of the warp's tiles from ``start`` on."""
        return self.warp + (quotient(self.lane, self.tiling.parts) + start) * i32(self.warps)

    def entry(self, start: Expr) -> Expr:
        """Where in the list this lane looks, for the tiles from ``start`` on."""
        return self.tiling.entry(self.item.begin, self.tile_of_lane(start), self.lane)

    def logical(self, start: Expr) -> Expr:
        """The logical page at that entry. Beyond the count it is any page, but it is read inside the list."""
        at = T.max(i32(0), T.min(self.entry(start), self.args.size("K") - 1))
        return let("logical", self.args.buffers["pages"][wide(self.item.request), self.head, at])

    def hold(self, held: HeldPages, start: Expr, logical: Expr) -> None:
        """Hold page ``logical`` for the tiles from ``start`` on, or nothing where the item has no such entry."""
        held.clear(0)
        with when(self.entry(start) < self.item.end):
            held.hold(logical, self.tile_of_lane(start), 0)


@dataclass(frozen=True)
class _Copies:
    """The copies of a warp's tiles from the pools into its ring."""

    template: _Template
    shared: _Shared
    entries: _Entries
    held: HeldPages

    def start(self, i: Expr, stage: Expr) -> None:
        """Start copying the warp's tile ``i``; tokens beyond the length become zeros instead."""
        t, warp, lane = self.template, self.entries.warp, self.entries.lane
        tiling, tile_size = t.tiling, t.knobs.tile
        at = let("at", remainder(i, tiling.batch))
        with when(T.And(at == 0, i > 0)):
            self.entries.hold(self.held, i, self.entries.logical(i))
        base = self.shared.place(warp, stage)
        rooms, origins = [], []
        for part in range(tiling.parts):
            source = at * tiling.parts + part
            room = let("tokens", shuffle(self.held.room[0], source))
            physical = wide(let("physical", shuffle(self.held.ids[0], source)))
            rooms.append(room)
            origins.append([self._origin(pool, physical, i) for pool in t.pools])
            with when(lane == 0):
                put(self.shared.fills, room, self.shared.fill(warp, stage, part))
        for n, tile in enumerate((self.shared.keys, self.shared.values)):
            for copy in range(tile.copies):
                row, chunk = tile.place(lane, copy)
                room, origin = rooms[0], origins[0][n]
                within = row
                for part in range(1, tiling.parts):
                    later = row >= part * t.shape.page
                    room = T.Select(later, rooms[part], room)
                    origin = T.Select(later, origins[part][n], origin)
                    within = T.Select(later, row - part * t.shape.page, within)
                step = t.pools[n].buffer.strides[2]
                source = t.pools[n].flat.ptr_to([origin + wide(within) * step + wide(chunk * tile.chunk)])
                size = cast(U32, T.Select(within < room, i32(16), i32(0)))
                target = tile.at(base + n * tile_size * t.shape.dim, row, chunk)
                busy = tile.lanes_of(copy)
                with when(lane < busy) if busy < WARP else nullcontext():
                    ptx("cp.async.cg.shared.global", target, source, 16, size)

    def _origin(self, pool: _Pool, physical: Expr, i: Expr) -> Expr:
        """Where the first token of the warp's tile ``i`` lies in a pool, in elements."""
        tiling = self.template.tiling
        page_step, head_step, token_step = pool.buffer.strides[:3]
        place = self.template.args.of_block(physical)
        at = place.page * page_step + wide(self.entries.head) * head_step
        if place.block is not None:
            at = at + self.template.args.token(place, i32(0)) * token_step
        if tiling.of_page > 1:
            at = at + wide(tiling.first_token(self.entries.tile(i))) * token_step
        return let("origin", at)


@dataclass(frozen=True)
class _Products:
    """What one warp computes of its tiles: the running softmax of all heads of the group.

    Scores come from the tensor cores with the tokens of a block of 16 on M and 8 heads on N:

                      head 8 tile + 2 (lane % 4)  + 1
        token lane / 4             d0               d1        number s of [((block, head tile), half), e] is
              lane / 4 + 8         d2               d3        d[2 half + e]

    movmatrix exchanges them within the warp, so that as weights they are fragment B of the product with the values.
    """

    template: _Template
    shared: _Shared
    warp: Expr
    lane: Expr
    queries: Buffer
    """Fragments B."""
    to_log2: Sequence[Expr]
    """From a product with the queries to an exponent of two, by the lane's heads ``2 tile + e``."""
    state: SoftmaxState
    """Heads in the order of ``to_log2``; of the tokens, the lane has those of lanes with its ``lane / 4``."""

    def take(self, stage: Expr) -> None:
        """Take the tile in a stage into the softmax."""
        t = self.template
        tiles, base = t.shape.head_tiles, self.shared.place(self.warp, stage)
        blocks = range(t.knobs.tile // 16)
        scores = self._scores(base, len(blocks))
        seen = [self._seen(stage, block * 16 + half * 8) for block in blocks for half in range(2)]
        shrink = registers("shrink", tiles * 2)
        weights = words("weights", len(blocks) * tiles * 2)
        for e in range(tiles * 2):
            self._weigh(scores, seen, e, shrink)
        for block in blocks:
            for tile in range(tiles):
                for half in range(2):
                    s = ((block * tiles + tile) * 2 + half) * 2
                    pair = words("pair", 1)
                    pack_pair(t.core, pair[0], scores[s], scores[s + 1])
                    # tokens from rows to columns: what was a result is now fragment B
                    ptx("movmatrix.sync.aligned.m8n8.trans.b16", weights[s // 2], pair[0])
        self._accumulate(self.shared.values_of(base), weights, shrink)

    def finish(self) -> None:
        """Add up the totals, of which each lane has its own tokens' share."""
        total = self.state.total
        for e in range(self.template.shape.head_tiles * 2):
            for mask in (4, 8, 16):
                put(total, total[e] + shuffle_xor(total[e], mask), e)

    def share(self, merge: Merge) -> None:
        """Leave sums, maxima and totals of this warp in shared memory; a lane's are where ``_accumulate`` says."""
        tiles, state = self.template.shape.head_tiles, self.state
        for tile in range(tiles):
            for e in range(2):
                head = let("shared_head", self.warp * merge.heads + tile * 8 + remainder(self.lane, 4) * 2 + e)
                for m in range(self.template.shape.v_dim // 16):
                    for half in range(2):
                        x = state.sums[(m * tiles + tile) * 4 + half * 2 + e]
                        merge.put_sum(x, head, self.shared.values.dim_of(self.lane, m, half))
                with when(self.lane < 4):
                    merge.put_stats(state.reference(state.top[tile * 2 + e]), state.total[tile * 2 + e], head)

    def _scores(self, base: Expr, blocks: int) -> Buffer:
        """The products of all tokens with all queries, in the order of the picture."""
        tiles, steps = self.template.shape.head_tiles, self.template.shape.dim // 16
        scores = registers("scores", blocks * tiles * 4)
        for s in range(blocks * tiles * 4):
            put(scores, f32(0), s)
        for block in range(blocks):
            for k, a in enumerate(self.shared.keys.keys(base, self.lane, block * 16)):
                for tile in range(tiles):
                    d = pick(scores, (block * tiles + tile) * 4, 4)
                    mma(self.template.core, d, a, pick(self.queries, (tile * steps + k) * 2, 2))
        return scores

    def _seen(self, stage: Expr, token: int) -> Expr:
        """Whether this lane's token at ``token + lane / 4`` of the tile is one of the request's."""
        tiling = self.template.tiling
        part, within = divmod(token, tiling.page) if tiling.parts > 1 else (0, token)
        fill = self.shared.fills[self.shared.fill(self.warp, stage, part)]
        return let("seen", quotient(self.lane, 4) + within < fill)

    def _weigh(self, scores: Buffer, seen: Sequence[Expr], e: int, shrink: Buffer) -> None:
        """Turn the scores of one of the lane's heads into weights, in place; move its maximum and total."""
        top, total = self.state.top, self.state.total
        tile, odd = divmod(e, 2)
        at = [
            ((block * self.template.shape.head_tiles + tile) * 2 + half) * 2 + odd
            for block in range(len(seen) // 2)
            for half in range(2)
        ]
        now = registers("highest", 1)
        put(now, top[e], 0)
        for s, valid in zip(at, seen, strict=True):
            put(scores, scores[s] * self.to_log2[e], s)
            put(now, T.max(now[0], T.Select(valid, scores[s], f32(LOWEST))), 0)
        for mask in (4, 8, 16):
            put(now, T.max(now[0], shuffle_xor(now[0], mask)), 0)
        exp2(shrink, e, top[e] - now[0])
        put(top, now[0], e)
        put(total, total[e] * shrink[e], e)
        reference = self.state.reference(now[0])
        for s, valid in zip(at, seen, strict=True):
            exp2(scores, s, scores[s] - reference)
            put(scores, T.Select(valid, scores[s], f32(0)), s)
            put(total, total[e] + scores[s], e)

    def _accumulate(self, base: Expr, weights: Buffer, shrink: Buffer) -> None:
        """Add the tile's weighted values to ``sums``, scaled to the new maximum.

        Number i of ``sums[(16 dims, head tile), i]`` is row ``lane / 4 + 8 (i / 2)`` of the product, which is the dim
        that :meth:`SharedTile.dim_of` tells, and head ``8 tile + lane % 4 * 2 + i % 2``.
        """
        sums, tiles, dims = self.state.sums, self.template.shape.head_tiles, self.template.shape.v_dim // 16
        for s in range(dims * tiles * 4):
            put(sums, sums[s] * shrink[(s // 4) % tiles * 2 + s % 2], s)
        for block in range(self.template.knobs.tile // 16):
            for m, a in enumerate(self.shared.values.values(base, self.lane, block * 16)):
                for tile in range(tiles):
                    d = pick(sums, (m * tiles + tile) * 4, 4)
                    mma(self.template.core, d, a, pick(weights, (block * tiles + tile) * 2, 2))
