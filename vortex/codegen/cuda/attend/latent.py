"""``attend`` over latent rows on a GPU (MLA): the row is key as a whole and its beginning is value, read once.

A CTA takes an item of the work list that ``plan`` wrote, for a block of heads. Its warps copy a tile of rows into a
ring in shared memory and work on it together, tokens on M and heads on N, so that 20 heads cost the arithmetic of 24:

1. scores: a warp multiplies its part of every row (a quarter, steps of 16 numbers dealt out in turn) with the queries,
   which stay in registers, and leaves partial scores in shared memory;
2. weights: a warp has some of the heads and a lane some of the tokens; it adds the parts up, moves the maximum, and
   leaves weights as 16-bit numbers;
3. sums: a warp has a part of the value's numbers of all heads: [512 numbers x heads] are too many for one.

The same tile serves 1 and, transposed by ldmatrix on the way, 3. A CTA-wide barrier stands between the steps.

Rows in fp8 come into the ring as bytes and become f16 between ldmatrix and the tensor cores, as K and V do
(:mod:`.shared_tile`); every warp brings its part of the queries into the range of f16 by itself (:mod:`.queries`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vortex.codegen.arguments import Arguments, tensor_type
from vortex.codegen.cuda.attend.core_type import CoreType
from vortex.codegen.cuda.attend.merge import Merge, Row
from vortex.codegen.cuda.attend.merge_groups import GroupedMerge
from vortex.codegen.cuda.attend.queries import factor_of, to_f16
from vortex.codegen.cuda.attend.ring import run_ring
from vortex.codegen.cuda.attend.shared_tile import CHUNK, keys_of, matrices, values_of
from vortex.codegen.cuda.attend.softmax import LOWEST, SoftmaxState
from vortex.codegen.cuda.attend.work_item import HeldPages, Tiling, WorkItem
from vortex.codegen.cuda.ptx import (
    LOG2E,
    TILE_TYPES,
    WARP,
    cta_sync,
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
    wide,
    words,
)
from vortex.codegen.cuda.warp import ballot
from vortex.codegen.cuda.work_list import HEADER
from vortex.codegen.narrow import STORAGE
from vortex.codegen.tir import F32, I32, U32, Buffer, Expr, T, cast, differ, equal, f32, i32, let, put, when
from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Function, Module
from vortex.schedules.cuda_attend import AttendShape, attend_of
from vortex.schedules.cuda_latent import COUNTERS, KEY_PARTS, CudaLatent, LatentKnobs, shape_of, split_words
from vortex.schedules.knobs import read_knobs

SPAN = 64
"""Numbers of a row whose 16-byte chunks are exchanged among themselves: places in two spans differ by a constant."""
LINE = 64
"""Elements of 16 bits in the 128 bytes that eight lanes copy at once."""


def emit_attend(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order.

    Raises:
        VortexError: VX4006 for element types or sizes that the template does not have.
    """
    o = attend_of(f)
    shape = shape_of(program, f)
    dtype = tensor_type(program, "q").dtype.name
    if STORAGE[dtype] not in TILE_TYPES:
        raise NOT_EMITTABLE.at(why=f"attend on a GPU takes bf16 or f16, not {dtype}", hint="compile with --dtype bf16")
    args = Arguments(program)
    args.of_attend(o, heads=1, align=16)
    args.scratch(CudaLatent.taken(), align=16, partial_heads=1, partial_words=split_words(shape))
    knobs = read_knobs(LatentKnobs, f.attrs.get("schedule", {}))
    overlap_launch(knobs.overlap)
    T.device_entry()
    with T.attr({"tirx.launch_bounds_min_blocks_per_sm": knobs.residents}):
        pool, kept = args.buffers[o.keys], STORAGE[tensor_type(program, o.keys).dtype.name]
        tiling, unit = Tiling(shape.page, knobs.tile), args.scale_of(o.keys)
        _emit_cta(_Template(args, shape, knobs, tiling, pool, flat_view(pool, kept, 16), unit, STORAGE[dtype]))
    return args.names


@dataclass(frozen=True)
class _Template(CoreType):
    """What is known of the kernel before its first instruction.

    The warps divide a tile of [tokens x numbers] in three ways, here 8 warps (two groups of ``KEY_PARTS``), by warp:

        scores: tokens                  weights: heads           sums: numbers of the value
          +------------------------+      0: the first             span 0   span 1   span 2   span 3
          | 0 1 2 3 | 0 1 2 3 | .. |         own_heads            |0 1 2 3||4 5 6 7||0 1 2 3||4 5 6 7|
          | (first half of tokens) |      1: the next ones          where each warp has 16 numbers of a span
          | 4 5 6 7 | 4 5 6 7 | .. |      ..                        of SPAN = 64
          +------------------------+
            span 0    span 1
    """

    args: Arguments
    shape: AttendShape
    knobs: LatentKnobs
    tiling: Tiling
    pool: Buffer
    flat: Buffer
    """The pool's memory as one row of elements."""
    unit: Expr
    """What the stored numbers are multiples of; 1 unless they are fp8."""
    dtype: str

    @property
    def row(self) -> int:
        """Elements of 16 bits of a row in shared memory."""
        return self.shape.dim * self.shape.kv_bytes // 2

    @property
    def span(self) -> int:
        """Elements of 16 bits of a span."""
        return SPAN * self.shape.kv_bytes // 2

    @property
    def stage_size(self) -> int:
        """Elements of 16 bits of one stage of the ring."""
        return self.knobs.tile * self.row

    def turned(self, row: Expr) -> Expr:
        """By what the chunks of a row are exchanged in each span. 8 chunks of 16-bit numbers go to 8 groups of 4 banks;
        of fp8 there are 4, and rows begin an odd multiple of 4 chunks apart, so that two rows share a number.
        """
        return quotient(remainder(row, 8), 2) if self.narrow else remainder(row, 8)

    @property
    def groups(self) -> int:
        """Groups of ``KEY_PARTS`` warps."""
        return self.knobs.warps // KEY_PARTS

    @property
    def token_blocks(self) -> int:
        """Blocks of 16 tokens that a warp multiplies with the queries."""
        return self.knobs.tile // 16 // self.groups

    @property
    def key_steps(self) -> int:
        """Spans of a row, in each of which a warp has 16 numbers."""
        return self.shape.dim // SPAN

    @property
    def value_tiles(self) -> int:
        """Spans of a value in which a warp has 16 numbers."""
        return self.shape.v_dim // SPAN // self.groups

    @property
    def own_heads(self) -> int:
        """Heads whose scores a warp turns into weights."""
        return self.knobs.heads // self.knobs.warps

    @property
    def own_tokens(self) -> int:
        """Tokens of a tile whose scores a lane turns into weights."""
        return self.knobs.tile // WARP


@dataclass(frozen=True)
class _Shared:
    """The shared memory of a CTA: the ring, then what the warps leave each other of one tile."""

    arena: Buffer
    fills: Buffer
    """How many tokens of each part of each tile are the request's, by (stage, part)."""
    numbers: Buffer
    """The arena as f32."""
    scores_at: int
    """Where the partial scores begin in ``numbers``: by (part of the row, head), ``score_pitch`` apart, and token."""
    weights_at: int
    """Where the weights begin in ``arena``: by head, ``weight_pitch`` apart, and token."""
    factors_at: int
    """Where the factors by which the sums of each head shrink begin in ``numbers``."""

    @classmethod
    def allocate(cls, t: _Template) -> _Shared:
        knobs = t.knobs
        ring = knobs.ring_bytes(t.shape)
        arena = T.alloc_buffer((knobs.arena_bytes(t.shape) // 2,), t.core, scope="shared.dyn", align=128)
        fills = T.alloc_buffer((max(4, knobs.stages * t.tiling.parts),), I32, scope="shared", align=16)
        weights = ring + knobs.score_bytes
        return cls(arena, fills, arena.view(F32), ring // 4, weights // 2, (weights + knobs.weight_bytes) // 4)


def _emit_cta(t: _Template) -> None:
    """The body of one CTA: one item of the work list, one block of the request's heads."""
    args, shape, knobs, tiling = t.args, t.shape, t.knobs, t.tiling
    # the blocks of an item are launched next to each other, so that they find its rows in L2
    block, index = T.cta_id([knobs.blocks(shape), args.size("N") - HEADER])
    warp, lane = T.warp_id([knobs.warps]), T.lane_id([WARP])
    shared = _Shared.allocate(t)
    ids, room = registers("ids", 2, I32), registers("room", 2, I32)
    overlap_begin(knobs.overlap)
    item = WorkItem.read(args, index, 0, knobs.overlap)
    tiles = let("tiles", T.max(i32(0), tiling.tiles(item.end - item.begin)))
    splits = item.splits()
    first_head = let("first_head", block * knobs.heads)
    with when(item.there):
        copies = _Copies(t, shared, item, HeldPages(args, item, tiling, ids, room), warp, lane)
        # read before the count of the row is known, which says whether they are pages
        listed = [copies.listed(start) for start in (i32(0), i32(tiling.batch))]
        with when(item.split < splits):
            for slot, (start, logical) in enumerate(zip((i32(0), i32(tiling.batch)), listed, strict=True)):
                copies.hold(start, slot, logical)
            queries = words("queries", knobs.head_tiles * t.key_steps * 2)
            state = SoftmaxState.start(t.own_heads, t.value_tiles * knobs.head_tiles * 4, narrow=t.narrow)
            scale = args.scalars["scale"] * f32(LOG2E)
            to_log2 = let("to_log2", scale * t.unit if t.narrow else scale)
            factors = registers("factors_of_q", knobs.head_tiles * 2) if t.core != t.dtype else None
            products = _Products(t, shared, warp, lane, queries, factors, to_log2, state)
            run_ring(
                knobs.stages,
                tiles,
                copy=copies.start,
                use=products.take,
                sync=cta_sync,
                begun=lambda: _load_queries(t, queries, factors, item.request, first_head, warp, lane),
            )
            row = let("row", item.request * knobs.blocks(shape) + block)
            thread = let("thread", warp * WARP + lane)
            partials = args.buffers["partials"].shape[2]
            merge = GroupedMerge(
                args=args,
                shape=shape,
                dtype=t.dtype,
                states=1,
                heads=knobs.heads,
                threads=knobs.warps * WARP,
                thread=thread,
                row=Row(item.request, i32(0), row * COUNTERS, first_head),
                split=item.split,
                splits=splits,
                word=lambda split: wide(item.other(split)) * wide(partials),
                shared=shared.arena.view(F32),
                merged=knobs.merged,
                unit=t.unit if t.narrow else None,
            )
            merge.emit(products.share)


@dataclass(frozen=True)
class _Copies:
    """The copies of the item's tiles from the pool into the ring, by all warps together.

    Every warp holds the pages of the tiles: in slot 0 those of the ``batch`` tiles in hand, in slot 1 those of the
    ``batch`` after them.
    """

    template: _Template
    shared: _Shared
    item: WorkItem
    held: HeldPages
    warp: Expr
    lane: Expr

    def listed(self, start: Expr) -> Expr:
        """What the list of pages has where those of ``batch`` tiles from ``start`` on are; undefined beyond its end."""
        pages, at = self.template.args.buffers["pages"], self._entry(start)
        found = registers("logical", 1, I32)
        put(found, i32(0), 0)
        with when(at < cast(I32, pages.shape[2])):
            put(found, pages[wide(self.item.request), 0, at], 0)
        return found[0]

    def hold(self, start: Expr, slot: int, logical: Expr) -> None:
        """Hold the pages of ``batch`` tiles from ``start`` on, of which this lane's is ``logical``."""
        self.held.clear(slot)
        with when(self._entry(start) < self.item.end):
            self.held.hold(logical, self._tile(start), slot)

    def _tile(self, start: Expr) -> Expr:
        """The tile that this lane is about."""
        return quotient(self.lane, self.template.tiling.parts) + start

    def _entry(self, start: Expr) -> Expr:
        return let("entry", self.template.tiling.entry(self.item.begin, self._tile(start), self.lane))

    def start(self, i: Expr, stage: Expr) -> None:
        """Start copying tile ``i``; tokens beyond the length become zeros instead. Eight lanes copy a row."""
        t, tiling, held = self.template, self.template.tiling, self.held
        shape, knobs, step = t.shape, t.knobs, t.pool.strides[2]
        at = let("at", remainder(i, tiling.batch))
        with when(T.And(equal(at, i32(0)), i > 0)):
            put(held.ids, held.ids[1], 0)
            put(held.room, held.room[1], 0)
            ahead = let("ahead", i + tiling.batch)
            self.hold(ahead, 1, self.listed(ahead))
        with when(equal(self.warp, i32(0))):
            for part in range(tiling.parts):
                room = let("tokens", shuffle(held.room[0], at * tiling.parts + part))
                with when(equal(self.lane, i32(0))):
                    put(self.shared.fills, room, stage * tiling.parts + part)
        chunk = let("chunk", remainder(self.lane, 8))
        for turn in range(knobs.tile // (knobs.warps * 4)):
            row = let("copied_row", self.warp * 4 + quotient(self.lane, 8) + turn * knobs.warps * 4)
            part, within = tiling.split_token(row)
            source = at * tiling.parts + part
            room = let("tokens", shuffle(held.room[0], source))
            physical = wide(let("physical", shuffle(held.ids[0], source)))
            token = within
            if tiling.of_page > 1:
                token = token + tiling.first_token(i)
            place = t.args.of_block(physical)
            at_token = t.args.token(place, wide(token))
            each = CHUNK * 2 // shape.kv_bytes
            origin = let("origin", place.page * t.pool.strides[0] + at_token * step + wide(chunk * each))
            size = cast(U32, T.Select(within < room, i32(16), i32(0)))
            place = stage * t.stage_size + row * t.row
            place = let("place", place + T.bitwise_xor(chunk, t.turned(row)) * CHUNK)
            for line in range(-(-t.row // LINE)):
                target = self.shared.arena.ptr_to([place + line * LINE])
                source = t.flat.ptr_to([origin + line * (each * 8)])
                if (line + 1) * LINE <= t.row:
                    ptx("cp.async.cg.shared.global", target, source, 16, size)
                else:
                    with when(chunk < (t.row - line * LINE) // CHUNK):
                        ptx("cp.async.cg.shared.global", target, source, 16, size)


def _load_queries(
    t: _Template, made: Buffer, factors: Buffer | None, request: Expr, first_head: Expr, warp: Expr, lane: Expr
) -> None:
    """Load fragment B of this warp's part of the queries into ``made``; heads beyond the last repeat it.

    Where they become f16, ``factors`` are what undoes the powers of two of heads ``8 tile + lane % 4 * 2 + e``, tile
    first.
    """
    source = t.args.buffers["q"]
    for tile in range(t.knobs.head_tiles):
        head = let("q_head", T.min(first_head + quotient(lane, 4) + tile * 8, i32(t.shape.group - 1)))
        for k in range(t.key_steps * 2):
            pair = remainder(lane, 4) * 4 + k % 2 * 2 if t.narrow else remainder(lane, 4) * 2 + k % 2 * 8
            dim = remainder(warp, KEY_PARTS) * 16 + pair + k // 2 * SPAN
            ptx("ld.global.b32", made[tile * t.key_steps * 2 + k], source.ptr_to([wide(request), head, dim]))
        if factors is not None:
            factor = to_f16(made, tile * t.key_steps * 2, t.key_steps * 2)
            for e in range(2):
                put(factors, factor_of(factor, lane, e), tile * 2 + e)


@dataclass(frozen=True)
class _Products:
    """What the warps of a CTA compute of its tiles, in the three steps of the file's docstring."""

    template: _Template
    shared: _Shared
    warp: Expr
    lane: Expr
    queries: Buffer
    """Fragments B of this warp's part of the row."""
    factors: Buffer | None
    """What undoes the powers of two of queries, by head tile and the lane's two heads; None where they have none."""
    to_log2: Expr
    """From a product with the queries to an exponent of two."""
    state: SoftmaxState
    """Maxima and totals of the warp's own heads; a lane has its own tokens' share of the totals."""

    def take(self, stage: Expr) -> None:
        """Take the tile in a stage into the softmax."""
        self._scores(stage)
        cta_sync()
        self._weigh(stage)
        cta_sync()
        self._accumulate(stage)

    def share(self, merge: Merge) -> None:
        """Leave the sums that ``_accumulate`` made in shared memory, and maxima and totals of the warp's own heads."""
        t, total = self.template, self.state.total
        tiles = t.knobs.head_tiles
        part, group = self._part_and_group()
        for s in range(t.value_tiles * tiles * 4):
            j, tile, i = s // 4 // tiles, s // 4 % tiles, s % 4
            head = remainder(self.lane, 4) * 2 + (tile * 8 + i % 2)
            row = quotient(self.lane, 4) * 2 + i // 2 if t.narrow else quotient(self.lane, 4) + i // 2 * 8
            number = group * SPAN + part * 16 + row + j * t.groups * SPAN
            merge.put_sum(self.state.sums[s], head, number)
        for e in range(t.own_heads):
            for mask in (1, 2, 4, 8, 16):
                put(total, total[e] + shuffle_xor(total[e], mask), e)
            with when(equal(self.lane, i32(0))):
                merge.put_stats(self.state.reference(self.state.top[e]), total[e], self.warp * t.own_heads + e)

    def _part_and_group(self) -> tuple[Expr, Expr]:
        """Which 16 numbers of a span are this warp's, and which group of warps it is in."""
        return remainder(self.warp, KEY_PARTS), quotient(self.warp, KEY_PARTS)

    def _scores(self, stage: Expr) -> None:
        """Multiply this warp's part of the rows with the queries; leave the products by part, head and token."""
        t, knobs, tiles = self.template, self.template.knobs, self.template.knobs.head_tiles
        part, group = self._part_and_group()
        token = group * (t.token_blocks * 16)
        chunk = part if t.narrow else part * 2 + quotient(self.lane, 16)
        chunk = T.bitwise_xor(chunk, t.turned(self.lane))
        base = stage * t.stage_size + (token + remainder(self.lane, 16)) * t.row + chunk * CHUNK
        base = let("rows", base + quotient(self.lane, 16) * t.span if t.narrow else base)
        # as many chains of dependent products as registers allow
        at_once = t.token_blocks if tiles * t.token_blocks <= 8 else 1
        for first in range(0, t.token_blocks, at_once):
            made = registers("scores", at_once * tiles * 4)
            for e in range(at_once * tiles * 4):
                put(made, f32(0), e)
            for k, block, a in self._rows(base, first, at_once):
                for tile in range(tiles):
                    d = pick(made, (block * tiles + tile) * 4, 4)
                    mma(t.core, d, a, pick(self.queries, (tile * t.key_steps + k) * 2, 2))
            head = part * knobs.heads + remainder(self.lane, 4) * 2
            word = head * knobs.score_pitch + token + quotient(self.lane, 4) + self.shared.scores_at
            word = let("score", word)
            for block in range(at_once):
                for e in range(tiles * 4):
                    tile, half, odd = e // 4, e // 2 % 2, e % 2
                    step = (tile * 8 + odd) * knobs.score_pitch + (first + block) * 16 + half * 8
                    x = made[block * tiles * 4 + e]
                    x = x if self.factors is None else x * self.factors[tile * 2 + odd]
                    put(self.shared.numbers, x, word + step)

    def _rows(self, base: Expr, first: int, count: int) -> Iterator[tuple[int, int, list[Expr]]]:
        """Fragments A of ``count`` blocks of 16 tokens (M) from the ``first`` on and this warp's 16 numbers of a span
        (K): the span, the block, the fragment. One ldmatrix gives those of a span, of fp8 those of two.
        """
        t = self.template
        each = 2 if t.narrow else 1
        for k in range(0, t.key_steps, each):
            for block in range(count):
                at = self.shared.arena.ptr_to([base + ((first + block) * 16 * t.row + k * t.span)])
                if not t.narrow:
                    yield k, block, matrices(4, at)
                    continue
                spans = min(each, t.key_steps - k)
                found = matrices(2 * spans, at)
                for n in range(spans):
                    yield k + n, block, keys_of(*found[2 * n : 2 * n + 2])

    def _weigh(self, stage: Expr) -> None:
        """Turn the scores of this warp's heads into weights; a lane has a token of every 32."""
        t, shared, top, total = self.template, self.shared, self.state.top, self.state.total
        knobs, numbers = t.knobs, shared.numbers
        seen = []
        for u in range(t.own_tokens):
            part, within = t.tiling.split_token(self.lane + u * WARP)
            seen.append(let("seen", within < shared.fills[stage * t.tiling.parts + part]))
        scores, now = registers("score", t.own_heads * t.own_tokens), registers("highest", t.own_heads)
        head = let("own_head", self.warp * t.own_heads)
        word = let("own_score", head * knobs.score_pitch + self.lane + shared.scores_at)
        for j in range(t.own_heads):
            put(now, top[j], j)
            for u in range(t.own_tokens):
                s = j * t.own_tokens + u
                for part in range(KEY_PARTS):
                    x = numbers[word + ((part * knobs.heads + j) * knobs.score_pitch + u * WARP)]
                    put(scores, x if part == 0 else scores[s] + x, s)
                put(scores, scores[s] * self.to_log2, s)
                put(now, T.max(now[j], T.Select(seen[u], scores[s], f32(LOWEST))), j)
        for mask in (1, 2, 4, 8, 16):
            for j in range(t.own_heads):
                put(now, T.max(now[j], shuffle_xor(now[j], mask)), j)
        packed, weights = words("packed", 1), shared.arena.view("uint16")
        shrink = registers("shrink", t.own_heads)
        for j in range(t.own_heads):
            exp2(shrink, j, top[j] - now[j])
            put(top, now[j], j)
            put(total, total[j] * shrink[j], j)
            with when(equal(self.lane, i32(0))):
                put(numbers, shrink[j], head + (j + shared.factors_at))
            reference = self.state.reference(now[j])
            for u in range(t.own_tokens):
                s = j * t.own_tokens + u
                exp2(scores, s, scores[s] - reference)
                put(scores, T.Select(seen[u], scores[s], f32(0)), s)
                put(total, total[j] + scores[s], j)
                pack_pair(t.core, packed[0], scores[s], f32(0))
                at = (head + j) * knobs.weight_pitch + self.lane + (u * WARP + shared.weights_at)
                put(weights, cast("uint16", T.bitwise_and(packed[0], T.uint32(0xFFFF))), at)

    def _accumulate(self, stage: Expr) -> None:
        """Add the tile's weighted values to ``sums``, scaled to the new maxima.

        Number i of ``sums[(value tile j, head tile), i]`` is number 64 (groups j + group) + 16 part + lane / 4 +
        8 (i / 2) of a value and head 8 tile + lane % 4 * 2 + i % 2, with ``part`` and ``group`` of the warp; of fp8 it
        is 2 (lane / 4) + i / 2 in the place of lane / 4 + 8 (i / 2).
        """
        t, arena, sums = self.template, self.shared.arena, self.state.sums
        knobs, tiles = t.knobs, t.knobs.head_tiles
        part, group = self._part_and_group()
        factors = registers("factors", tiles * 2)
        changed = i32(0)
        for e in range(tiles * 2):
            at = remainder(self.lane, 4) * 2 + (e // 2 * 8 + e % 2 + self.shared.factors_at)
            put(factors, self.shared.numbers[at], e)
            changed = T.bitwise_or(changed, T.Select(differ(factors[e], f32(1)), i32(1), i32(0)))
        with when(differ(ballot(changed), T.uint32(0))):
            for s in range(t.value_tiles * tiles * 4):
                put(sums, sums[s] * factors[s // 4 % tiles * 2 + s % 2], s)
        row = remainder(self.lane, 16) if t.narrow else remainder(self.lane, 8) + quotient(self.lane, 16) * 8
        chunk = part if t.narrow else part * 2 + remainder(quotient(self.lane, 8), 2)
        chunk = T.bitwise_xor(chunk, t.turned(self.lane))
        base = stage * t.stage_size + row * t.row + chunk * CHUNK + group * t.span
        base = let("values", base + quotient(self.lane, 16) * (t.groups * t.span) if t.narrow else base)
        weight = remainder(self.lane, 8) * knobs.weight_pitch + quotient(self.lane, 8) * CHUNK
        weight = let("weight", weight + self.shared.weights_at)
        for pair in range(knobs.tile // 32):
            b = words("weights", tiles * 4)
            for tile in range(tiles):
                at = arena.ptr_to([weight + (tile * 8 * knobs.weight_pitch + pair * 32)])
                ptx("ldmatrix.sync.aligned.m8n8.x4.shared.b16", *pick(b, tile * 4, 4), at)
            for half in range(2):
                for j, a in self._values(base, pair * 2 + half):
                    for tile in range(tiles):
                        d = pick(sums, (j * tiles + tile) * 4, 4)
                        mma(t.core, d, a, pick(b, tile * 4 + half * 2, 2))

    def _values(self, base: Expr, block: int) -> Iterator[tuple[int, list[Expr]]]:
        """Fragments A of this warp's 16 numbers of a value tile (M) and a block of 16 tokens (K), with the tile; one
        ldmatrix gives those of a tile, of fp8 those of two.
        """
        t = self.template
        each = 2 if t.narrow else 1
        for j in range(0, t.value_tiles, each):
            at = self.shared.arena.ptr_to([base + (block * 16 * t.row + j * t.groups * t.span)])
            if not t.narrow:
                yield j, matrices(4, at, ".trans")
                continue
            tiles = min(each, t.value_tiles - j)
            found = matrices(2 * tiles, at, ".trans")
            for n in range(tiles):
                yield j + n, values_of(*found[2 * n : 2 * n + 2])
