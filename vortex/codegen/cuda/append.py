"""``append`` on a GPU: a CTA takes the pages of one (request, KV head) that the step's tokens reach, in stripes; of
pages that are summarised beside their blocks, it does both.

The CTA that summarises a page has itself stored all of the page's new tokens: a token belongs to one page and a
page to one CTA, so no CTA ever waits for another. The grid comes from the number of tokens alone; in a decode step
it is one CTA for each row, and in a prefill chunk CTAs without a page leave after two loads.

Where each request has at most one new token, the launch of ``select`` may do the same in CTAs of its own
(:mod:`vortex.schedules.taken_in`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vortex.codegen.arguments import Arguments, Place
from vortex.codegen.cuda.cta_compute import PLAIN, Block, BlockTiles
from vortex.codegen.cuda.pool_rows import PoolRows
from vortex.codegen.cuda.ptx import (
    cta_sync,
    early,
    flat_view,
    overlap_begin,
    overlap_launch,
    overlap_wait,
    quotient,
    remainder,
    wide,
)
from vortex.codegen.cuda.storage import Arena, RowStorage, StoredValues
from vortex.codegen.cuda.vector_load import unpack, vector
from vortex.codegen.cuda.warp import Cta, rounds_of
from vortex.codegen.narrow import STORAGE, narrow
from vortex.codegen.resets import Begun, ResetTo
from vortex.codegen.tir import U32, Buffer, Expr, T, cast, equal, flat, i32, let, local, loop, put, tirx, unflat, when
from vortex.codegen.values import Index, type_of
from vortex.ir.core import Function, Module, Op, Value
from vortex.ir.dialects import page
from vortex.schedules.cuda_append import AppendKnobs
from vortex.schedules.knobs import read_knobs

CTAS = 4096
"""Stripes are as many as leave about this many CTAs for each KV head."""


def emit_append(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order."""
    args = Arguments(program)
    args.of_append(f, loc=True)
    knobs = read_knobs(AppendKnobs, f.attrs.get("schedule", {}))
    overlap_launch(knobs.overlap)
    T.device_entry()
    size, heads = _units(args, f)[-1].size, args.size("Hkv")
    requests = args.size("B")
    fits = T.max(i32(1), tirx.truncdiv(i32(CTAS), requests))
    # the longest request has all tokens but one of each other; of a batch that decodes, every request has one
    longest = T.max(i32(1), args.size("T") - requests + 1)
    stripes = T.max(i32(1), T.min(fits, rounds_of(longest, size)))
    head, stripe, request = T.cta_id([heads, stripes, requests])
    cta = Cta.open(knobs.threads)
    overlap_begin(knobs.overlap)
    tokens = NewTokens.read(args, let("r", request))
    overlap_wait(knobs.overlap)
    kernel = Appending.reserve(args, f, cta)
    kernel.arena.open()
    kernel.emit(tokens, let("h", head), let("stripe", stripe), let("stripes", stripes))
    return args.names


@dataclass(frozen=True)
class NewTokens:
    """The tokens of one request that a step adds."""

    request: Expr
    begin: Expr
    """The first of them among the tokens of the step."""
    end: Expr
    """The first of the next request's."""
    now: Expr
    """The request's tokens, the new ones included."""

    @classmethod
    def read(cls, args: Arguments, r: Expr) -> NewTokens:
        """Those of request ``r``, before :func:`overlap_wait`: three loads that are on their way together."""
        of_row = [("lengths", r), ("row_offsets", r), ("row_offsets", r + 1)]
        now, begin, end = (early(name, args.buffers[name], at) for name, at in of_row)
        return cls(r, begin, end, now)


@dataclass(frozen=True)
class _Unit:
    """What is summarised: a block, which may be a page, or a page of several blocks."""

    body: list[Op]
    size: int
    """Its tokens."""

    @property
    def loads(self) -> list[str]:
        """The pools of which it needs the rows."""
        return list(dict.fromkeys(o.buffer for o in self.body if isinstance(o, page.Load)))

    @property
    def stores(self) -> bool:
        """Whether anything is kept of it."""
        return any(isinstance(o, page.Store) for o in self.body)


def _units(args: Arguments, f: Function) -> list[_Unit]:
    """Blocks, and pages where something is kept of these beside them."""
    of_block, of_page = page.summaries_of(args.program, f)
    blocks = _Unit(of_block, args.block_size)
    return [blocks, _Unit(of_page, args.block_size * args.page_blocks)] if of_page else [blocks]


@dataclass(frozen=True)
class Appending:
    """The body of one CTA: every ``stripes``-th of the pages that the request's new tokens reach."""

    args: Arguments
    f: Function
    scattered: list[page.Scatter]
    cta: Cta
    units: list[_Unit]
    """What is summarised, the last of them dealt out to CTAs."""
    arena: Arena
    """To be opened, or given the memory of one that is."""
    pools: dict[str, PoolRows]
    elements: dict[str, Buffer]
    """The memory of each pool as one row of elements."""
    pitch: dict[str, int]
    """Words between the rows of a page in shared memory."""
    tiles: dict[str, int]
    """Where the rows of each pool begin in shared memory; those of a page take the place of those of its blocks."""
    storages: dict[Value, RowStorage]

    @classmethod
    def reserve(cls, args: Arguments, f: Function, cta: Cta) -> Appending:
        """Take the shared memory."""
        units, scattered = _units(args, f), [o for o in f.ops if isinstance(o, page.Scatter)]
        loads = dict.fromkeys(o.buffer for o in f.ops if isinstance(o, page.Load))
        size = {n: max(u.size for u in units if n in u.loads) for n in loads}
        names = [*loads, *(o.buffer for o in scattered if o.buffer not in loads)]
        arena = Arena()
        pools, elements = dict[str, PoolRows](), dict[str, Buffer]()
        for n in names:
            b, kept = args.buffers[n], args.type_of(n).dtype
            pools[n] = PoolRows(args, n, flat_view(b, U32, 4))
            elements[n] = flat_view(b, STORAGE[kept.name], kept.bytes)
        # rows are one word further apart than they are long, so that a column spreads over the banks
        pitch = {n: pools[n].row_size + 1 for n in loads}
        tiles = {n: arena.take(pitch[n] * size[n]) for n in loads}
        storages = {
            o.value: RowStorage(arena, arena.take(max(1, type_of(o.value).numel)))
            for o in f.ops
            if o.result is not None and o.notes.get("in") == "tile"
        }
        return cls(args, f, scattered, cta, units, arena, pools, elements, pitch, tiles, storages)

    @property
    def size(self) -> int:
        """Tokens of what is dealt out."""
        return self.units[-1].size

    def emit(self, tokens: NewTokens, h: Expr, stripe: Expr, stripes: Expr) -> None:
        """Store the new tokens of the request in its pages, and summarise each page that they fill."""
        r, now = tokens.request, tokens.now
        new = let("added", tokens.end - tokens.begin)
        before = let("before", now - new)
        # a padded request has length 0, whatever tokens are counted as its own
        with when(T.And(new > 0, before >= 0)):
            first, end = let("first_page", quotient(before, i32(self.size))), let("end_page", rounds_of(now, self.size))
            with loop("turn", quotient(end - first - stripe + stripes - 1, stripes)) as turn:
                p = let("p", first + stripe + turn * stripes)
                whole = len(self.units) > 1
                at = self.args.look_up_page(r, p, "page") if whole else self.args.look_up(r, p, "page")
                if self.scattered:
                    self._store(tokens, before, p, h)
                if whole:
                    self._blocks(self.units[0], before, now, p, at, h)
                if self.units[-1].stores:
                    with when((p + 1) * self.size <= now):
                        self._summarise(self.units[-1], at, h)
        if resets := [o for o in self.f.ops if isinstance(o, page.Reset)]:
            self._reset(resets, Begun.of(self.args, r), stripe, stripes, h)

    def _blocks(self, unit: _Unit, before: Expr, now: Expr, p: Expr, at: Place, h: Expr) -> None:
        """Summarise the blocks of page ``p`` that the new tokens fill."""
        if not unit.stores:
            return
        with loop("block", self.args.page_blocks) as block:
            end = let("block_end", p * self.size + (block + 1) * unit.size)
            with when(T.And(end > before, end <= now)):
                self._summarise(unit, Place(at.page, wide(block)), h)

    def _reset(self, resets: list[page.Reset], begun: Begun, stripe: Expr, stripes: Expr, h: Expr) -> None:
        """Write ``init`` to state whose slot or page is another request's or another page from this step on."""
        size = i32(self.args.block_size)
        first, end = quotient(begun.known, size), quotient(begun.now, size)
        with when(T.And(begun.slot >= 0, begun.now > 0)):
            for o in resets:
                kept = begun.reset(o)

                def clear(*at: Expr, kept: ResetTo = kept) -> None:
                    with self.cta.share("element", math.prod(kept.tile)) as e:
                        put(kept.buffer, kept.value, wide(begun.slot), h, *at, *unflat(e, kept.tile))

                if kept.of_pages:
                    with loop("turn", quotient(end - first - stripe + stripes - 1, stripes)) as turn:
                        clear(*self.args.entry(first + stripe + turn * stripes))
                else:
                    with when(T.And(equal(stripe, i32(0)), equal(begun.known, i32(0)))):
                        clear()

    def _store(self, tokens: NewTokens, before: Expr, p: Expr, h: Expr) -> None:
        """Write the new tokens of page ``p`` to their slots; a negative slot is a padded token and goes nowhere."""
        start = let("start", T.max(p * self.size, before))
        count = let("count", T.min((p + 1) * self.size, tokens.now) - start)
        token = let("token", tokens.begin + start - before)
        with when(self.args.size("tokens") > 0):
            for o in self.scattered:
                pool = self.pools[o.buffer]
                given = self.args.type_of(o.source).dtype
                source = flat_view(self.args.buffers[o.source], STORAGE[given.name], given.bytes)
                dim = pool.type.tile[1]
                with self.cta.share("element", count * dim) as e:
                    t, d = let("t", token + quotient(e, i32(dim))), let("d", remainder(e, i32(dim)))
                    slot = let("slot", self.args.buffers["loc"][t])
                    with when(slot >= 0):
                        page_size = T.int64(self.args.block_size * self.args.page_blocks)
                        to, at = T.truncdiv(slot, page_size), T.truncmod(slot, page_size)
                        where = (wide(t) * wide(self.args.size("Hkv")) + wide(h)) * dim + wide(d)
                        put(self.elements[o.buffer], self.args.to_pool(o, source[where]), pool.element(to, h, at, d))
            # this CTA summarises what it stored
            cta_sync()

    def _summarise(self, unit: _Unit, place: Place, h: Expr) -> None:
        """Compute the summaries of a page, or block, that is full."""
        for name, at in self.tiles.items():
            if name in unit.loads:
                self._copy_tile(name, at, unit.size, place, h)
        cta_sync()
        values = StoredValues(self._load)
        values.constants = self.args.constants
        values.leaves = self.args.place(h)
        values.parameters = self.args.parameters
        block = Block(values, BlockTiles(values, PLAIN, cta=self.cta))
        for o in unit.body:
            if isinstance(o, page.Store):
                if self.args.type_of(o.buffer).dtype.per_byte > 1:
                    block.before([o.x])  # a byte takes elements of several threads
                else:
                    block.before_copy(o.x)
                self._write(block, o, place, h)
            elif o.result is not None and o.value in self.storages:
                values.storages[o.value] = self.storages[o.value]
                block.compute(o)
        # the next page overwrites what is read here
        cta_sync()

    def _copy_tile(self, name: str, at: int, size: int, place: Place, h: Expr) -> None:
        """Copy the ``size`` rows of a page, or block, into shared memory; each byte is read once."""
        pool = self.pools[name]
        row, width = pool.row_size, pool.width
        held = local(f"{name}_words", max(2, width), U32)
        with self.cta.share("vector", size * row // width) as v:
            token, word = (
                let("token", quotient(v, i32(row // width))),
                let("word", remainder(v, i32(row // width)) * width),
            )
            source = let("source", pool.row(place.page, h, self.args.token(place, token), width) + wide(word))
            with vector(width) as w:
                put(held, pool.words[source + w], w)
            for w in range(width):
                put(self.arena.u32, held[w], token * self.pitch[name] + word + (at + w))

    def _load(self, o: page.Load, index: Index) -> Expr:
        """Read an element of the page from shared memory."""
        t = self.pools[o.buffer].type
        each = 4 // t.dtype.bytes
        dim = index[1]
        word = self.arena.u32[index[0] * self.pitch[o.buffer] + quotient(dim, i32(each)) + self.tiles[o.buffer]]
        if each == 1:
            return unpack(word, 0, t.dtype)
        if each == 4:
            byte = T.shift_right(word, cast(U32, remainder(dim, i32(4)) * 8))
            return self.args.from_pool(o.buffer, cast("uint8", T.bitwise_and(byte, T.uint32(0xFF))))
        low, high = unpack(word, 0, t.dtype), unpack(word, 1, t.dtype)
        return T.Select(remainder(dim, i32(2)) > 0, high, low)

    def _write(self, block: Block, o: page.Store, place: Place, h: Expr) -> None:
        """Write one summary of a page."""
        t = self.args.type_of(o.buffer)
        target = flat_view(self.args.buffers[f"field.{o.buffer}"], STORAGE[t.dtype.name], t.dtype.bytes)
        page_of_head = let("field_base", self._tile_of(place, h) * math.prod(t.packed))

        def keep(i: Index, x: Expr) -> None:
            put(target, narrow(x, t.dtype), page_of_head + wide(flat(i, t.tile)))

        if t.dtype.per_byte == 1:
            block.tiles.copy(o.x, keep)
        else:
            block.tiles.copy_packed(o.x, t.dtype, lambda i, x: put(target, x, page_of_head + wide(flat(i, t.packed))))

    def _tile_of(self, at: Place, h: Expr) -> Expr:
        """The number of a block's tile among those of a field."""
        tile = at.page * wide(self.args.size("Hkv")) + wide(h)
        return tile if at.block is None else tile * self.args.page_blocks + at.block
