"""``attend`` on a GPU: split-KV attention over selected pages, one launch, merged by the last CTA of a row.

A CTA takes one KV head of an item of the work list that ``plan`` wrote, or, in a kernel that is not ``planned``, a
split of a row in a grid of (splits, Hkv, B); there the tiles of a row are dealt out in turn to the warps of all its
splits. Either way page ids are read while the row's count still is on its way. A warp copies its tiles through a ring
of its own (no CTA-wide step in the loop) and multiplies keys by queries with the tokens on M and the heads on N: a
group of 5 costs no memory traffic for 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.attend.merge import LOWEST, Merge
from vortex.codegen.cuda.attend.queries import Queries
from vortex.codegen.cuda.attend.shared_tile import ByteTile, SharedTile
from vortex.codegen.cuda.plan import HEADER, PART_BITS
from vortex.codegen.cuda.ptx import (
    TILE_TYPES,
    WARP,
    ceil_quotient,
    early,
    exp2,
    flat_view,
    mma,
    overlap_begin,
    overlap_launch,
    overlap_wait,
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
)  # fmt: skip
from vortex.codegen.narrow import STORAGE
from vortex.codegen.tir import F32, I32, U32, Buffer, Expr, T, cast, f32, i32, let, put, when
from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Function, Module
from vortex.ir.dialects import page
from vortex.ir.types import TensorType, fp8_e4m3
from vortex.schedules.cuda_attend import AttendKnobs, AttendShape, attend_of, partial_words, shape_of
from vortex.schedules.knobs import read_knobs

HEADROOM = 14.0
"""Powers of two between the largest weight and 1 in kernels that multiply in f16 for another type's sake."""


def emit_attend(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order.

    Raises:
        VortexError: VX4006 for element types or sizes that the template does not have.
    """
    o = attend_of(f)
    shape = shape_of(program, f)
    _require(program, o, shape)
    args = Arguments(program)
    args.queries(program.decls["q"], align=16)
    for name in (o.keys, o.values):
        args.pool(program.decls[name], align=16)
    args.tensor("lengths", ("B",), I32)
    args.tensor("page_table", ("B", "Pmax"), I32)
    args.tensor("pages", ("B", "Hkv", "K"), I32)
    args.tensor("counts", ("B", "Hkv"), I32)
    args.scalar("scale", F32)
    args.scales(*(program.decls[name] for name in (o.keys, o.values)))
    out = _tensor(program, "out")
    args.tensor("out", ("B", "Hq", shape.v_dim), STORAGE[out.dtype.name], align=16)
    args.tensor("lse", ("L", "Hq"), F32)
    knobs = read_knobs(AttendKnobs, f.attrs.get("schedule", {}))
    if knobs.planned:
        args.tensor("work", (2, "N"), I32)
        args.tensor("partials", ("I", "Hkv", partial_words(shape)), F32, align=16)
    else:
        args.tensor("partials", ("R", "S", partial_words(shape)), F32, align=16)
    args.tensor("arrivals", ("R",), I32)
    overlap_launch(knobs.overlap)
    T.device_entry()
    with T.attr({"tirx.launch_bounds_min_blocks_per_sm": knobs.residents}):
        _Cta(args, o, shape, knobs, STORAGE[_tensor(program, "q").dtype.name]).emit()
    return args.names


def _tensor(program: Module, name: str) -> TensorType:
    found = program.decls[name].type
    assert isinstance(found, TensorType)
    return found


def _require(program: Module, o: page.Attend, shape: AttendShape) -> None:
    given, kept = ({_tensor(program, n).dtype for n in names} for names in (("q", "out"), (o.keys, o.values)))
    types = {t.name for t in given | (set() if kept == {fp8_e4m3} else kept)}
    if len(types) != 1 or STORAGE[next(iter(types))] not in TILE_TYPES:
        why = f"attend on a GPU takes bf16 or f16, one for all but K and V in fp8; here are {', '.join(sorted(types))}"
        raise NOT_EMITTABLE.at(why=why, hint="compile with --dtype bf16")
    if shape.dim % 16 or shape.v_dim % 16 or shape.page % 8:
        why = f"attend on a GPU takes head dims in steps of 16 and pages in steps of 8; here are {shape.dim}"
        raise NOT_EMITTABLE.at(why=f"{why} and {shape.page}", hint="--target cpu has no such limit")


class _Cta:
    """The body of one CTA: one split of row (``request``, ``head``)."""

    def __init__(self, args: Arguments, o: page.Attend, shape: AttendShape, knobs: AttendKnobs, dtype: str) -> None:
        self.args, self.shape, self.knobs, self.dtype = args, shape, knobs, dtype
        self.pools = [args.buffers[o.keys], args.buffers[o.values]]
        self.units = [args.scale_of(o.keys), args.scale_of(o.values)]
        self.kept = STORAGE[_tensor(args.program, o.keys).dtype.name]
        self.narrow = shape.kv_bytes == 1
        self.core = "float16" if self.narrow else dtype
        self.flat = [flat_view(p, self.kept, 16) for p in self.pools]
        self.parts = max(1, knobs.tile // shape.page)  # pages in a tile
        self.of_page = max(1, shape.page // knobs.tile)  # tiles in a page
        self.batch = WARP // self.parts  # tiles whose page ids a warp holds at once
        self.stage_size = knobs.tile * (shape.dim + shape.v_dim)

    def emit(self) -> None:
        knobs, size = self.knobs, self.args.size
        self.item, self.head, *rest = T.cta_id(
            [size("N") - HEADER, size("Hkv")] if knobs.planned else [size("S"), size("Hkv"), size("B")]
        )
        self.warp, self.lane = T.warp_id([knobs.warps]), T.lane_id([WARP])
        size_of_arena = knobs.arena_bytes(self.shape) // self.shape.kv_bytes
        self.arena = T.alloc_buffer((size_of_arena,), self.kept, scope="shared.dyn", align=128)
        self.fills = T.alloc_buffer((knobs.warps * knobs.stages * self.parts,), I32, scope="shared", align=16)
        kind = ByteTile if self.narrow else SharedTile
        self.keys, self.values = (kind(self.arena, knobs.tile, n) for n in (self.shape.dim, self.shape.v_dim))
        overlap_begin(knobs.overlap)
        active = self._of_list() if knobs.planned else self._of_grid(rest[0])
        self.ids, self.room = registers("ids", 1, I32), registers("room", 1, I32)
        with when(active):
            self._find_pages(i32(0), self.logical)
            self.mine = let("mine", T.max(i32(0), ceil_quotient(self.tiles - self.first, self.step)))
            queries = Queries(self.args, self.shape, self.keys, self.dtype, self.core, self.units[0])
            self.q = queries.load(self.request, self.head, self.lane)
            self._start(queries)
            self._loop()
            sizes = knobs.warps, self.shape.head_tiles * 8, knobs.warps * WARP
            merge = Merge(self.args, self.shape, *sizes, self.dtype, self.arena, self.split, self.splits, self.word)
            merge.unit = self.units[1] if self.narrow else None
            row = let("row", self.request * size("Hkv") + self.head)
            thread = let("thread", self.warp * WARP + self.lane)
            merge.emit(self.request, let("q_first", self.head * self.shape.group), row, thread, self._share)

    # its share of the work: this warp's tiles are first, first + step, ... below tiles, of the pages from begin on

    def _of_list(self) -> Expr:
        """An item of the list: ``split`` of a request's pages. Whether there is anything to do."""
        work, hkv = self.args.buffers["work"], self.args.size("Hkv")
        items, entry, size = (
            early(n, work, i32(1), at) for n, at in (("items", i32(0)), ("entry", self.item + HEADER), ("size", i32(1)))
        )
        overlap_wait(self.knobs.overlap)
        there = let("there", self.item < items)
        item = let("item", T.Select(there, entry, i32(0)))
        each = let("each", T.max(i32(1), size))
        self.request = let("request", T.shift_right(item, i32(PART_BITS)))
        self.split = let("split", T.bitwise_and(item, i32((1 << PART_BITS) - 1)))
        self._row()
        self.begin = let("begin", self.split * each)
        self.end = let("end", T.min(self.begin + each, self.count))
        self.first, self.step = self.warp, i32(self.knobs.warps)
        self.logical = self._logical(i32(0))
        self.tiles = self._tiles(self.end - self.begin)
        # the items of a request stand one after another; an empty row still writes its output
        self.splits = let("splits", T.max(i32(1), ceil_quotient(self.count, each)))
        words = self.args.buffers["partials"].shape[2]
        self.word = lambda split: wide((self.item - self.split + split) * hkv + self.head) * wide(words)
        return T.And(there, self.split < self.splits)

    def _of_grid(self, request: Expr) -> Expr:
        """Split ``item`` of a row, which takes only as many as it has tiles for. Whether it takes this one."""
        overlap_wait(self.knobs.overlap)
        size, warps = self.args.size, self.knobs.warps
        self.request, self.split = request, self.item
        self._row()
        self.begin, self.end = i32(0), self.count
        self.first = let("first", self.split * warps + self.warp)
        self.step = let("step", size("S") * warps)
        self.logical = self._logical(i32(0))
        self.tiles = self._tiles(self.count)
        self.splits = let("splits", T.max(i32(1), T.min(size("S"), ceil_quotient(self.tiles, warps))))
        words, row = self.args.buffers["partials"].shape[2], wide(request * size("Hkv") + self.head)
        self.word = lambda split: (row * wide(size("S")) + wide(split)) * wide(words)
        return self.split < self.splits

    def _row(self) -> None:
        self.count = let("count", self.args.buffers["counts"][self.request, self.head])
        self.length = let("length", self.args.buffers["lengths"][self.request])

    def _tiles(self, pages: Expr) -> Expr:
        return let("tiles", pages * self.of_page if self.parts == 1 else ceil_quotient(pages, self.parts))

    # which pages

    def _position(self, start: Expr) -> Expr:
        """Where in the row's list of pages this lane looks: one page a lane, ``batch`` tiles from ``start`` on."""
        tile = self.first + (quotient(self.lane, self.parts) + start) * self.step
        if self.parts == 1:
            return self.begin + quotient(tile, self.of_page)
        return self.begin + tile * self.parts + remainder(self.lane, self.parts)

    def _logical(self, start: Expr) -> Expr:
        """The logical page of this lane; anything beyond the count, but read inside the list."""
        at = T.max(i32(0), T.min(self._position(start), self.args.size("K") - 1))
        return let("logical", self.args.buffers["pages"][self.request, self.head, at])

    def _find_pages(self, start: Expr, logical: Expr) -> None:
        """ids = physical page; room = tokens of the request from where the lane's tile starts on, at most a page."""
        shape = self.shape
        put(self.ids, i32(0), 0)
        put(self.room, i32(0), 0)
        with when(self._position(start) < self.end):
            put(self.ids, self.args.buffers["page_table"][self.request, logical], 0)
            begin = logical * shape.page
            if self.of_page > 1:
                tile = self.first + (quotient(self.lane, self.parts) + start) * self.step
                begin = begin + remainder(tile, self.of_page) * self.knobs.tile
            most = min(shape.page, self.knobs.tile)
            put(self.room, T.max(i32(0), T.min(i32(most), self.length - begin)), 0)

    # the ring

    def _load(self, i: Expr, stage: Expr) -> None:
        """Start copying tile ``i`` of this warp into its ring; tokens beyond the length are zeros instead."""
        shape, knobs = self.shape, self.knobs
        at = let("at", remainder(i, self.batch))
        with when(T.And(at == 0, i > 0)):
            self._find_pages(i, self._logical(i))
        base = let("base", (self.warp * knobs.stages + stage) * self.stage_size)
        rooms, origins = [], []
        for part in range(self.parts):
            source = at * self.parts + part
            room = let("tokens", shuffle(self.room[0], source))
            physical = wide(let("physical", shuffle(self.ids[0], source)))
            rooms.append(room)
            origins.append([self._origin(n, physical, i) for n in range(2)])
            with when(self.lane == 0):
                put(self.fills, room, (self.warp * knobs.stages + stage) * self.parts + part)
        for n, tile in enumerate((self.keys, self.values)):
            for copy in range(tile.copies):
                row, chunk = tile.place(self.lane, copy)
                room, origin = rooms[0], origins[0][n]
                within = row
                for part in range(1, self.parts):
                    later = row >= part * shape.page
                    room = T.Select(later, rooms[part], room)
                    origin = T.Select(later, origins[part][n], origin)
                    within = T.Select(later, row - part * shape.page, within)
                step = self.pools[n].strides[2]
                source = self.flat[n].ptr_to([origin + wide(within * step + chunk * tile.chunk)])
                size = cast(U32, T.Select(within < room, i32(16), i32(0)))
                target = tile.at(base + n * knobs.tile * shape.dim, row, chunk)
                busy = tile.lanes_of(copy)
                with when(self.lane < busy) if busy < WARP else nullcontext():
                    ptx("cp.async.cg.shared.global", target, source, 16, size)

    def _origin(self, n: int, physical: Expr, i: Expr) -> Expr:
        """Where the tile's first token lies in a pool, in elements."""
        page_step, head_step, token_step = self.pools[n].strides[:3]
        at = physical * wide(page_step) + wide(self.head) * wide(head_step)
        if self.of_page > 1:
            tile = self.first + i * self.step
            at = at + wide(remainder(tile, self.of_page) * self.knobs.tile * token_step)
        return let("origin", at)

    def _start(self, queries: Queries) -> None:
        heads = self.shape.head_tiles * 2  # of this lane
        self.top, self.total = registers("top", heads), registers("total", heads)
        self.sums = registers("sums", heads * self.shape.v_dim // 8)
        for e in range(heads):
            put(self.top, f32(LOWEST), e)
            put(self.total, f32(0), e)
        for e in range(heads * self.shape.v_dim // 8):
            put(self.sums, f32(0), e)
        self.to_log2 = queries.to_log2(self.lane)

    def _loop(self) -> None:
        ahead = self.knobs.stages - 1
        for i in range(ahead):
            with when(i32(i) < self.mine):
                self._load(i32(i), i32(i))
            ptx("cp.async.commit_group")
        turn, stage = registers("turn", 1, I32), registers("stage", 1, I32)
        put(turn, i32(0), 0)
        put(stage, i32(0), 0)
        with T.While(turn[0] < self.mine):
            ptx("cp.async.wait_group", ahead - 1)
            # every lane's copies are there, and every lane is done with the stage that is filled next
            warp_sync()
            with when(turn[0] + ahead < self.mine):
                free = T.Select(stage[0] == 0, i32(ahead), stage[0] - 1)
                self._load(let("next", turn[0] + ahead), let("free", free))
            ptx("cp.async.commit_group")
            self._tile(let("now", stage[0]))
            put(turn, turn[0] + 1, 0)
            put(stage, T.Select(stage[0] == ahead, i32(0), stage[0] + 1), 0)
        for e in range(self.shape.head_tiles * 2):
            for mask in (4, 8, 16):
                put(self.total, self.total[e] + shuffle_xor(self.total[e], mask), e)

    def _share(self, merge: Merge) -> None:
        """Sums, maxima and totals of this warp into shared memory; a lane's are where ``_accumulate`` says."""
        tiles = self.shape.head_tiles
        for tile in range(tiles):
            for e in range(2):
                head = let("shared_head", self.warp * merge.heads + tile * 8 + remainder(self.lane, 4) * 2 + e)
                for m in range(self.shape.v_dim // 16):
                    for half in range(2):
                        x = self.sums[(m * tiles + tile) * 4 + half * 2 + e]
                        merge.put_sum(x, head, self.values.dim_of(self.lane, m, half))
                with when(self.lane < 4):
                    merge.put_stats(self._reference(self.top[tile * 2 + e]), self.total[tile * 2 + e], head)

    # one tile

    def _tile(self, stage: Expr) -> None:
        """Online softmax over the tokens of one tile in shared memory."""
        shape, knobs = self.shape, self.knobs
        base = let("base", (self.warp * knobs.stages + stage) * self.stage_size)
        blocks = range(knobs.tile // 16)
        scores = self._scores(base, len(blocks))
        seen = [self._seen(stage, block * 16 + half * 8) for block in blocks for half in range(2)]
        shrink = registers("shrink", shape.head_tiles * 2)
        weights = words("weights", len(blocks) * shape.head_tiles * 2)
        for e in range(shape.head_tiles * 2):
            self._weigh(scores, seen, e, shrink)
        for block in blocks:
            for tile in range(shape.head_tiles):
                for half in range(2):
                    s = ((block * shape.head_tiles + tile) * 2 + half) * 2
                    pair = words("pair", 1)
                    pack_pair(self.core, pair[0], scores[s], scores[s + 1])
                    # tokens from rows to columns: what was a result is now fragment B
                    ptx("movmatrix.sync.aligned.m8n8.trans.b16", weights[s // 2], pair[0])
        self._accumulate(base + knobs.tile * shape.dim, weights, shrink)

    def _scores(self, base: Expr, blocks: int) -> Buffer:
        """scores[((block, head tile), half), e]: token 16 block + 8 half + lane / 4, head 8 tile + lane % 4 * 2 + e"""
        tiles, steps = self.shape.head_tiles, self.shape.dim // 16
        scores = registers("scores", blocks * tiles * 4)
        for s in range(blocks * tiles * 4):
            put(scores, f32(0), s)
        for block in range(blocks):
            for k, a in enumerate(self.keys.keys(base, self.lane, block * 16)):
                for tile in range(tiles):
                    d = pick(scores, (block * tiles + tile) * 4, 4)
                    mma(self.core, d, a, pick(self.q, (tile * steps + k) * 2, 2))
        return scores

    def _seen(self, stage: Expr, token: int) -> Expr:
        """Whether this lane's token at ``token + lane / 4`` of the tile is one of the request's."""
        part, within = divmod(token, self.shape.page) if self.parts > 1 else (0, token)
        fill = self.fills[(self.warp * self.knobs.stages + stage) * self.parts + part]
        return let("seen", quotient(self.lane, 4) + within < fill)

    def _weigh(self, scores: Buffer, seen: Sequence[Expr], e: int, shrink: Buffer) -> None:
        """Scores of one head of this lane to weights, in place; moves its maximum and total."""
        tile, odd = divmod(e, 2)
        at = [
            ((block * self.shape.head_tiles + tile) * 2 + half) * 2 + odd
            for block in range(len(seen) // 2)
            for half in range(2)
        ]
        now = registers("highest", 1)
        put(now, self.top[e], 0)
        for s, valid in zip(at, seen, strict=True):
            put(scores, scores[s] * self.to_log2[e], s)
            put(now, T.max(now[0], T.Select(valid, scores[s], f32(LOWEST))), 0)
        for mask in (4, 8, 16):
            put(now, T.max(now[0], shuffle_xor(now[0], mask)), 0)
        exp2(shrink, e, self.top[e] - now[0])
        put(self.top, now[0], e)
        put(self.total, self.total[e] * shrink[e], e)
        reference = self._reference(now[0])
        for s, valid in zip(at, seen, strict=True):
            exp2(scores, s, scores[s] - reference)
            put(scores, T.Select(valid, scores[s], f32(0)), s)
            put(self.total, self.total[e] + scores[s], e)

    def _reference(self, top: Expr) -> Expr:
        """The exponent of a weight of 1. Weights in f16 go up to 2^14, so that those of 2^-38 are not lost."""
        return let("reference", top - f32(HEADROOM)) if self.narrow else top

    def _accumulate(self, base: Expr, weights: Buffer, shrink: Buffer) -> None:
        """sums[(16 dims, head tile), i]: row lane / 4 + 8 (i / 2) of the product, head 8 tile + lane % 4 * 2 + i % 2"""
        tiles, dims = self.shape.head_tiles, self.shape.v_dim // 16
        for s in range(dims * tiles * 4):
            put(self.sums, self.sums[s] * shrink[(s // 4) % tiles * 2 + s % 2], s)
        for block in range(self.knobs.tile // 16):
            for m, a in enumerate(self.values.values(base, self.lane, block * 16)):
                for tile in range(tiles):
                    d = pick(self.sums, (m * tiles + tile) * 4, 4)
                    mma(self.core, d, a, pick(weights, (block * tiles + tile) * 2, 2))
