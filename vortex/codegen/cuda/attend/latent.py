"""``attend`` over latent rows on a GPU (MLA): the row is key as a whole and its beginning is value, read once.

A CTA takes an item of the work list that ``plan`` wrote, for a block of heads. Its warps copy a tile of rows into a
ring in shared memory and work on it together, tokens on M and heads on N, so that 20 heads cost the arithmetic of 24:

1. scores: a warp multiplies its part of every row (a quarter, steps of 16 numbers dealt out in turn) with the queries,
   which stay in registers, and leaves partial scores in shared memory;
2. weights: a warp has some of the heads and a lane some of the tokens; it adds the parts up, moves the maximum, and
   leaves weights as 16-bit numbers;
3. sums: a warp has a part of the value's numbers of all heads: [512 numbers x heads] are too many for one.

The same tile serves 1 and, transposed by ldmatrix on the way, 3. A CTA-wide barrier stands between the steps.
"""

from __future__ import annotations

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.attend.merge import LOWEST, Merge
from vortex.codegen.cuda.attend.shared_tile import CHUNK, SharedTile
from vortex.codegen.cuda.plan import HEADER, PART_BITS
from vortex.codegen.cuda.ptx import (
    LOG2E,
    TILE_TYPES,
    WARP,
    ceil_quotient,
    cta_sync,
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
    wide,
    words,
)  # fmt: skip
from vortex.codegen.cuda.warp import ballot
from vortex.codegen.narrow import STORAGE
from vortex.codegen.tir import F32, I32, U32, Expr, T, cast, differ, equal, f32, i32, let, put, when
from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Function, Module
from vortex.ir.dialects import page
from vortex.ir.types import TensorType
from vortex.schedules.cuda_attend import AttendShape, attend_of, partial_words
from vortex.schedules.cuda_latent import KEY_PARTS, LatentKnobs, shape_of
from vortex.schedules.knobs import read_knobs

SPAN = 64
"""Numbers of a row whose 16-byte chunks are exchanged among themselves: places in two spans differ by a constant."""


def emit_attend(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order.

    Raises:
        VortexError: VX4006 for element types or sizes that the template does not have.
    """
    o = attend_of(f)
    shape = shape_of(program, f)
    dtype = _tensor(program, o.keys).dtype.name
    if STORAGE[dtype] not in TILE_TYPES:
        raise NOT_EMITTABLE.at(why=f"attend on a GPU takes bf16 or f16, not {dtype}", hint="compile with --dtype bf16")
    args = Arguments(program)
    args.queries(program.decls["q"], align=16)
    args.pool(program.decls[o.keys], align=16)
    args.tensor("lengths", ("B",), I32)
    args.tensor("page_table", ("B", "Pmax"), I32)
    args.tensor("pages", ("B", 1, "K"), I32)
    args.tensor("counts", ("B", 1), I32)
    args.scalar("scale", F32)
    args.tensor("out", ("B", "Hq", shape.v_dim), STORAGE[dtype], align=16)
    args.tensor("lse", ("L", "Hq"), F32)
    args.tensor("work", (2, "N"), I32)
    args.tensor("partials", ("I", 1, partial_words(shape)), F32, align=16)
    args.tensor("arrivals", ("R",), I32)
    knobs = read_knobs(LatentKnobs, f.attrs.get("schedule", {}))
    overlap_launch(knobs.overlap)
    T.device_entry()
    with T.attr({"tirx.launch_bounds_min_blocks_per_sm": knobs.residents}):
        _Cta(args, o, shape, knobs, STORAGE[dtype]).emit()
    return args.names


def _tensor(program: Module, name: str) -> TensorType:
    found = program.decls[name].type
    assert isinstance(found, TensorType)
    return found


class _Cta:
    """The body of one CTA: one split of a request's tokens, one block of its heads."""

    def __init__(self, args: Arguments, o: page.Attend, shape: AttendShape, knobs: LatentKnobs, dtype: str) -> None:
        self.args, self.shape, self.knobs, self.dtype = args, shape, knobs, dtype
        self.pool = args.buffers[o.keys]
        self.flat = flat_view(self.pool, dtype, 16)
        self.parts = max(1, knobs.tile // shape.page)  # pages in a tile
        self.of_page = max(1, shape.page // knobs.tile)  # tiles in a page
        self.batch = WARP // self.parts  # tiles whose page ids a warp holds at once
        self.stage_size = knobs.tile * shape.dim
        self.groups = knobs.warps // KEY_PARTS  # of four warps
        self.token_blocks = knobs.tile // 16 // self.groups  # of a warp, in step 1
        self.key_steps = shape.dim // SPAN
        self.value_tiles = shape.v_dim // SPAN // self.groups  # of a warp, in step 3
        self.own_heads = knobs.heads // knobs.warps  # of a warp, in step 2
        self.own_tokens = knobs.tile // WARP  # of a lane, in step 2

    def emit(self) -> None:
        knobs, shape, size = self.knobs, self.shape, self.args.size
        # the blocks of an item are launched next to each other, so that they find its rows in L2
        self.block, self.item = T.cta_id([knobs.blocks(shape), size("N") - HEADER])
        self.warp, self.lane = T.warp_id([knobs.warps]), T.lane_id([WARP])
        self.arena = T.alloc_buffer((knobs.arena_bytes(shape) // 2,), self.dtype, scope="shared.dyn", align=128)
        self.fills = T.alloc_buffer((max(4, knobs.stages * self.parts),), I32, scope="shared", align=16)
        self.tile = SharedTile(self.arena, knobs.tile, shape.dim)
        self.scores = self.arena.view(F32)
        self.scores_at = knobs.ring_bytes(shape) // 4
        self.weights_at = (knobs.ring_bytes(shape) + knobs.score_bytes) // 2
        self.factors_at = self.scores_at + (knobs.score_bytes + knobs.weight_bytes) // 4
        self.ids, self.room = registers("ids", 2, I32), registers("room", 2, I32)
        overlap_begin(knobs.overlap)
        with when(self._find_item()):
            self._find_pages(i32(0), 0)
            self._find_pages(i32(self.batch), 1)
            self._queries()
            self._start()
            self._loop()
            sizes = 1, knobs.heads, knobs.warps * WARP
            merge = Merge(self.args, shape, *sizes, self.dtype, self.arena, self.split, self.splits, self.word)
            row = let("row", self.request * knobs.blocks(shape) + self.block)
            thread = let("thread", self.warp * WARP + self.lane)
            merge.emit(self.request, i32(0), row, thread, self._share, self.first_head)

    # its share of the work: tiles 0, 1, .. of pages [begin, end) of the request's list

    def _find_item(self) -> Expr:
        """What the work list has for this CTA. Whether there is anything to do."""
        work = self.args.buffers["work"]
        items, entry, size = (
            early(n, work, i32(1), at) for n, at in (("items", i32(0)), ("entry", self.item + HEADER), ("size", i32(1)))
        )
        overlap_wait(self.knobs.overlap)
        there = let("there", self.item < items)
        item = let("item", T.Select(there, entry, i32(0)))
        each = let("each", T.max(i32(1), size))
        self.request = let("request", T.shift_right(item, i32(PART_BITS)))
        self.split = let("split", T.bitwise_and(item, i32((1 << PART_BITS) - 1)))
        count = let("count", self.args.buffers["counts"][self.request, 0])
        self.length = let("length", self.args.buffers["lengths"][self.request])
        self.begin = let("begin", self.split * each)
        self.end = let("end", T.min(self.begin + each, count))
        pages = self.end - self.begin
        tiles = pages * self.of_page if self.parts == 1 else ceil_quotient(pages, self.parts)
        self.tiles = let("tiles", T.max(i32(0), tiles))
        # the items of a request stand one after another; an empty row still writes its output
        self.splits = let("splits", T.max(i32(1), ceil_quotient(count, each)))
        self.first_head = let("first_head", self.block * self.knobs.heads)
        words_of = self.args.buffers["partials"].shape[2]
        self.word = lambda split: wide(self.item - self.split + split) * wide(words_of)
        return T.And(there, self.split < self.splits)

    def _find_pages(self, start: Expr, slot: int) -> None:
        """The page of this lane among ``batch`` tiles from ``start`` on: where it lies, how many tokens of it count."""
        tile = quotient(self.lane, self.parts) + start
        if self.parts == 1:
            at = self.begin + quotient(tile, self.of_page)
        else:
            at = self.begin + tile * self.parts + remainder(self.lane, self.parts)
        put(self.ids, i32(0), slot)
        put(self.room, i32(0), slot)
        with when(at < self.end):
            logical = let("logical", self.args.buffers["pages"][self.request, 0, at])
            put(self.ids, self.args.buffers["page_table"][self.request, logical], slot)
            first = logical * self.shape.page
            if self.of_page > 1:
                first = first + remainder(tile, self.of_page) * self.knobs.tile
            most = min(self.shape.page, self.knobs.tile)
            put(self.room, T.max(i32(0), T.min(i32(most), self.length - first)), slot)

    # the ring

    def _load(self, i: Expr, stage: Expr) -> None:
        """Start copying tile ``i``; tokens beyond the length are zeros instead. Eight lanes copy a row."""
        shape, knobs, step = self.shape, self.knobs, self.pool.strides[2]
        at = let("at", remainder(i, self.batch))
        with when(T.And(equal(at, i32(0)), i > 0)):
            put(self.ids, self.ids[1], 0)
            put(self.room, self.room[1], 0)
            self._find_pages(i + self.batch, 1)
        with when(equal(self.warp, i32(0))):
            for part in range(self.parts):
                room = let("tokens", shuffle(self.room[0], at * self.parts + part))
                with when(equal(self.lane, i32(0))):
                    put(self.fills, room, stage * self.parts + part)
        chunk = let("chunk", remainder(self.lane, 8))
        for turn in range(knobs.tile // (knobs.warps * 4)):
            row = let("copied_row", self.warp * 4 + quotient(self.lane, 8) + turn * knobs.warps * 4)
            part, within = (quotient(row, shape.page), remainder(row, shape.page)) if self.parts > 1 else (0, row)
            source = at * self.parts + part
            room = let("tokens", shuffle(self.room[0], source))
            physical = wide(let("physical", shuffle(self.ids[0], source)))
            token = within
            if self.of_page > 1:
                token = token + remainder(i, self.of_page) * knobs.tile
            origin = let("origin", physical * wide(self.pool.strides[0]) + wide(token * step + chunk * CHUNK))
            size = cast(U32, T.Select(within < room, i32(16), i32(0)))
            place = stage * self.stage_size + row * shape.dim
            place = let("place", place + T.bitwise_xor(chunk, remainder(row, 8)) * CHUNK)
            for span in range(shape.dim // SPAN):
                target, words_of = self.arena.ptr_to([place + span * SPAN]), self.flat.ptr_to([origin + span * SPAN])
                ptx("cp.async.cg.shared.global", target, words_of, 16, size)

    def _queries(self) -> None:
        """Fragment B of this warp's part of the queries; heads beyond the last repeat it."""
        self.q = words("queries", self.knobs.head_tiles * self.key_steps * 2)
        source = self.args.buffers["q"]
        for tile in range(self.knobs.head_tiles):
            head = let("q_head", T.min(self.first_head + quotient(self.lane, 4) + tile * 8, i32(self.shape.group - 1)))
            for k in range(self.key_steps * 2):
                dim = remainder(self.warp, KEY_PARTS) * 16 + remainder(self.lane, 4) * 2 + (k // 2 * SPAN + k % 2 * 8)
                ptx("ld.global.b32", self.q[tile * self.key_steps * 2 + k], source.ptr_to([self.request, head, dim]))

    def _start(self) -> None:
        self.top, self.total = registers("top", self.own_heads), registers("total", self.own_heads)
        self.sums = registers("sums", self.value_tiles * self.knobs.head_tiles * 4)
        for e in range(self.own_heads):
            put(self.top, f32(LOWEST), e)
            put(self.total, f32(0), e)
        for e in range(self.value_tiles * self.knobs.head_tiles * 4):
            put(self.sums, f32(0), e)
        self.to_log2 = let("to_log2", self.args.scalars["scale"] * f32(LOG2E))

    def _loop(self) -> None:
        ahead = self.knobs.stages - 1
        for i in range(ahead):
            with when(i32(i) < self.tiles):
                self._load(i32(i), i32(i))
            ptx("cp.async.commit_group")
        turn, stage = registers("turn", 1, I32), registers("stage", 1, I32)
        put(turn, i32(0), 0)
        put(stage, i32(0), 0)
        with T.While(turn[0] < self.tiles):
            ptx("cp.async.wait_group", ahead - 1)
            # the tile is there, and all warps are done with the stage that is filled next
            cta_sync()
            with when(turn[0] + ahead < self.tiles):
                free = T.Select(equal(stage[0], i32(0)), i32(ahead), stage[0] - 1)
                self._load(let("next", turn[0] + ahead), let("free", free))
            ptx("cp.async.commit_group")
            now = let("now", stage[0])
            self._scores(now)
            cta_sync()
            self._weigh(now)
            cta_sync()
            self._accumulate(now)
            put(turn, turn[0] + 1, 0)
            put(stage, T.Select(equal(stage[0], i32(ahead)), i32(0), stage[0] + 1), 0)

    # one tile

    def _scores(self, stage: Expr) -> None:
        """Products of this warp's part of the rows with the queries, to shared memory by part, head, token."""
        knobs, tiles = self.knobs, self.knobs.head_tiles
        part, group = remainder(self.warp, KEY_PARTS), quotient(self.warp, KEY_PARTS)
        token = group * (self.token_blocks * 16)
        chunk = T.bitwise_xor(part * 2 + quotient(self.lane, 16), remainder(self.lane, 8))
        base = stage * self.stage_size + (token + remainder(self.lane, 16)) * self.shape.dim + chunk * CHUNK
        base = let("rows", base)
        # as many chains of dependent products as registers allow
        at_once = self.token_blocks if tiles * self.token_blocks <= 8 else 1
        for first in range(0, self.token_blocks, at_once):
            made = registers("scores", at_once * tiles * 4)
            for e in range(at_once * tiles * 4):
                put(made, f32(0), e)
            for k in range(self.key_steps):
                for block in range(at_once):
                    a = words("a", 4)
                    at = base + ((first + block) * 16 * self.shape.dim + k * SPAN)
                    ptx("ldmatrix.sync.aligned.m8n8.x4.shared.b16", *pick(a, 0, 4), self.arena.ptr_to([at]))
                    for tile in range(tiles):
                        d = pick(made, (block * tiles + tile) * 4, 4)
                        mma(self.dtype, d, pick(a, 0, 4), pick(self.q, (tile * self.key_steps + k) * 2, 2))
            head = part * knobs.heads + remainder(self.lane, 4) * 2
            base_word = let("score", head * knobs.score_pitch + token + quotient(self.lane, 4) + self.scores_at)
            for block in range(at_once):
                for e in range(tiles * 4):
                    tile, half, odd = e // 4, e // 2 % 2, e % 2
                    step = (tile * 8 + odd) * knobs.score_pitch + (first + block) * 16 + half * 8
                    put(self.scores, made[block * tiles * 4 + e], base_word + step)

    def _weigh(self, stage: Expr) -> None:
        """Scores of this warp's heads to weights; a lane has a token of every 32."""
        knobs, shape = self.knobs, self.shape
        seen = []
        for u in range(self.own_tokens):
            token = self.lane + u * WARP
            part, within = (quotient(token, shape.page), remainder(token, shape.page)) if self.parts > 1 else (0, token)
            seen.append(let("seen", within < self.fills[stage * self.parts + part]))
        scores, now = registers("score", self.own_heads * self.own_tokens), registers("highest", self.own_heads)
        head = let("own_head", self.warp * self.own_heads)
        word = let("own_score", head * knobs.score_pitch + self.lane + self.scores_at)
        for j in range(self.own_heads):
            put(now, self.top[j], j)
            for u in range(self.own_tokens):
                s = j * self.own_tokens + u
                for part in range(KEY_PARTS):
                    x = self.scores[word + ((part * knobs.heads + j) * knobs.score_pitch + u * WARP)]
                    put(scores, x if part == 0 else scores[s] + x, s)
                put(scores, scores[s] * self.to_log2, s)
                put(now, T.max(now[j], T.Select(seen[u], scores[s], f32(LOWEST))), j)
        for mask in (1, 2, 4, 8, 16):
            for j in range(self.own_heads):
                put(now, T.max(now[j], shuffle_xor(now[j], mask)), j)
        packed, weights = words("packed", 1), self.arena.view("uint16")
        shrink = registers("shrink", self.own_heads)
        for j in range(self.own_heads):
            exp2(shrink, j, self.top[j] - now[j])
            put(self.top, now[j], j)
            put(self.total, self.total[j] * shrink[j], j)
            with when(equal(self.lane, i32(0))):
                put(self.scores, shrink[j], head + (j + self.factors_at))
            for u in range(self.own_tokens):
                s = j * self.own_tokens + u
                exp2(scores, s, scores[s] - now[j])
                put(scores, T.Select(seen[u], scores[s], f32(0)), s)
                put(self.total, self.total[j] + scores[s], j)
                pack_pair(self.dtype, packed[0], scores[s], f32(0))
                at = (head + j) * knobs.weight_pitch + self.lane + (u * WARP + self.weights_at)
                put(weights, cast("uint16", T.bitwise_and(packed[0], T.uint32(0xFFFF))), at)

    def _accumulate(self, stage: Expr) -> None:
        """sums[(value tile j, head tile), i]: number 64 (groups j + group) + 16 part + lane / 4 + 8 (i / 2) of a value,
        head 8 tile + lane % 4 * 2 + i % 2, with ``part`` and ``group`` of the warp.
        """
        knobs, tiles, dim = self.knobs, self.knobs.head_tiles, self.shape.dim
        part, group = remainder(self.warp, KEY_PARTS), quotient(self.warp, KEY_PARTS)
        factors = registers("factors", tiles * 2)
        changed = i32(0)
        for e in range(tiles * 2):
            at = remainder(self.lane, 4) * 2 + (e // 2 * 8 + e % 2 + self.factors_at)
            put(factors, self.scores[at], e)
            changed = T.bitwise_or(changed, T.Select(differ(factors[e], f32(1)), i32(1), i32(0)))
        with when(differ(ballot(changed), T.uint32(0))):
            for s in range(self.value_tiles * tiles * 4):
                put(self.sums, self.sums[s] * factors[s // 4 % tiles * 2 + s % 2], s)
        row = remainder(self.lane, 8) + quotient(self.lane, 16) * 8
        chunk = part * 2 + remainder(quotient(self.lane, 8), 2)
        chunk = T.bitwise_xor(chunk, remainder(self.lane, 8))
        base = let("values", stage * self.stage_size + row * dim + chunk * CHUNK + group * SPAN)
        weight = remainder(self.lane, 8) * knobs.weight_pitch + quotient(self.lane, 8) * CHUNK
        weight = let("weight", weight + self.weights_at)
        for pair in range(knobs.tile // 32):
            b = words("weights", tiles * 4)
            for tile in range(tiles):
                at = self.arena.ptr_to([weight + (tile * 8 * knobs.weight_pitch + pair * 32)])
                ptx("ldmatrix.sync.aligned.m8n8.x4.shared.b16", *pick(b, tile * 4, 4), at)
            for half in range(2):
                for j in range(self.value_tiles):
                    a = words("at", 4)
                    at = base + ((pair * 2 + half) * 16 * dim + j * self.groups * SPAN)
                    ptx("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", *pick(a, 0, 4), self.arena.ptr_to([at]))
                    for tile in range(tiles):
                        d = pick(self.sums, (j * tiles + tile) * 4, 4)
                        mma(self.dtype, d, pick(a, 0, 4), pick(b, tile * 4 + half * 2, 2))

    def _share(self, merge: Merge) -> None:
        """The sums that ``_accumulate`` left in this warp, and maxima and totals of its own heads."""
        tiles = self.knobs.head_tiles
        part, group = remainder(self.warp, KEY_PARTS), quotient(self.warp, KEY_PARTS)
        for s in range(self.value_tiles * tiles * 4):
            j, tile, i = s // 4 // tiles, s // 4 % tiles, s % 4
            head = remainder(self.lane, 4) * 2 + (tile * 8 + i % 2)
            number = group * SPAN + part * 16 + quotient(self.lane, 4) + (j * self.groups * SPAN + i // 2 * 8)
            merge.put_sum(self.sums[s], head, number)
        for e in range(self.own_heads):
            for mask in (1, 2, 4, 8, 16):
                put(self.total, self.total[e] + shuffle_xor(self.total[e], mask), e)
            with when(equal(self.lane, i32(0))):
                merge.put_stats(self.top[e], self.total[e], self.warp * self.own_heads + e)
