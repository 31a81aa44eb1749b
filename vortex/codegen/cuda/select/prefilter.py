"""Long rows whose keys lie in the workspace: what may be among the best comes to shared memory before the choice.

While the items of a row write keys, each page tile leaves its greatest one. As many of those as pages are wanted bound
the keys of all that are chosen, so the last CTA reads the page tiles whose greatest key reaches the bound:

    greatest of tiles    9  2  7  3  8  1  ..    bound of the 3 best: 7, or a little less
    tiles that are read  x     x     x
    shared memory        keys 9 8 7 7 ..         in the order of their pages
                         pages 3 17 70 75 ..

Where more are wanted than that bounds well, a row that fits is copied as it is, and of others a sample bounds them
(:mod:`.key_bound`), and all are read (:mod:`.marks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from vortex.codegen.cuda.ptx import WARP, cta_sync, quotient, warp_extreme, warp_sync
from vortex.codegen.cuda.select.key_bound import KeyBound
from vortex.codegen.cuda.select.kth_key import KthKey
from vortex.codegen.cuda.select.marks import Marks
from vortex.codegen.cuda.select.row_keys import Pages, RowKeys
from vortex.codegen.cuda.select.shortlist import ONE_BY_ONE, Shortlist
from vortex.codegen.cuda.storage import Arena, Held, Opened
from vortex.codegen.cuda.warp import Cta, ballot, below, count_bits, rounds_of
from vortex.codegen.tir import (
    F32,
    I32,
    U32,
    Buffer,
    Expr,
    T,
    cast,
    choose,
    equal,
    i32,
    let,
    local,
    loop,
    put,
    register,
    when,
)
from vortex.schedules.page_tiles import PAGE_TILE

TOGETHER = 8
"""Page tiles, or keys of a thread, that are read together."""


@dataclass(frozen=True)
class Greatest:
    """The greatest key of each page tile of a row, in the workspace; there are none of a row that is not long."""

    words: Opened
    long: Expr

    @classmethod
    def open(cls, held: Held, scored: Expr, in_registers: int) -> Greatest:
        """Of a row of ``scored`` keys; one is not long where its keys are on chip, or ``in_registers`` of threads."""
        is_long = T.And(T.Not(held.is_on_chip), scored > in_registers)
        long = register("row_is_long", T.Select(is_long, i32(1), i32(0)))
        return cls(held.opened(), long > 0)

    def put(self, key: Expr, cta: Cta, position: Expr) -> None:
        """Leave the greatest ``key`` of the lanes, for the page tile of ``position``; all lanes take part."""
        with when(self.long):
            most = warp_extreme("max", key)
            with when(equal(cta.lane, i32(0))):
                self.words.set(T.reinterpret(F32, most), quotient(position, i32(PAGE_TILE)))


@dataclass(frozen=True)
class Prefilter:
    """Brings keys of long rows to shared memory: where rows that are on chip have theirs."""

    cta: Cta
    held: int
    """Keys that a thread keeps in registers: a row that fits there is not long."""
    kth: KthKey
    shortlist: Shortlist

    def load(self, keys: Held, greatest: Greatest | None, scored: Expr, best: Expr, limit: int | None) -> RowKeys:
        """The keys of a row of which the ``best`` best are wanted, of which there are ``limit`` at most where that is
        known; ``greatest`` are those of its page tiles.
        """
        if not keys.pitch:
            return RowKeys.load(self.cta, keys, scored, self.held)
        near, count, listed = (local(name, 1, I32) for name in ("row_is_near", "keys_of_row", "row_is_listed"))
        put(near, T.Select(keys.is_on_chip, i32(1), i32(0)), 0)
        put(count, scored, 0)
        put(listed, i32(0), 0)
        room = room_of(keys)
        with when(T.And(T.Not(keys.is_on_chip), scored > self.held * self.cta.threads)):
            found = local("keys_found", 1, I32)
            put(found, i32(room + 1), 0)
            if greatest is not None:
                self._filter(keys, greatest, scored, best, limit, found)
            with choose(found[0] <= room) as (few, many):
                with few():
                    put(near, i32(1), 0)
                    put(count, found[0], 0)
                    put(listed, i32(1), 0)
                with many(), when(scored <= keys.pitch):
                    self._copy(keys, scored)
                    put(near, i32(1), 0)
            cta_sync()
        here = replace(keys, on_chip=let("near", near[0] > 0))
        pages = Pages(keys.arena, keys.at + room, let("listed_pages", listed[0] > 0))
        return RowKeys.load(self.cta, here, let("row_keys", count[0]), self.held, pages)

    def _filter(
        self, keys: Held, greatest: Greatest, scored: Expr, best: Expr, limit: int | None, found: Buffer
    ) -> None:
        """List the keys that reach a bound of the best, if so many have one; ``found`` says how many those are."""
        tiles = register("tiles", rounds_of(scored, PAGE_TILE))
        at, each = keys.at + 2 * room_of(keys), _words_of_warp(keys, self.cta)
        row = _Tiles(self.cta, keys.arena, at, each, keys.opened(), greatest.words, scored, tiles)
        if limit is None:
            self._search(keys, row, best, found)
            return
        # code that such a choice hardly ever runs makes what it runs come from memory later
        with when(T.And(T.And(best > 0, best <= self.cta.threads), 2 * best <= tiles)):
            self._list(keys, row, self._answered(row, best), found)

    def _search(self, keys: Held, row: _Tiles, best: Expr, found: Buffer) -> None:
        """The same where any number of pages may be wanted: bounds of more than warps answer for are searched."""
        room, scored, bounds = room_of(keys), row.scored, KeyBound.open(self.cta, self.kth)
        wanted, few = local("wanted_keys", 1, I32), local("are_few", 1, I32)
        answer = ONE_BY_ONE * self.cta.warps
        # a row that fits is copied in less time than a search takes
        worth = T.Or(best <= answer, T.And(scored > keys.pitch, row.tiles <= bounds.size))
        put(few, T.Select(T.And(2 * best <= row.tiles, worth), i32(1), i32(0)), 0)
        put(wanted, T.Select(few[0] > 0, best, i32(0)), 0)
        with when(T.And(T.And(equal(few[0], i32(0)), best > 0), scored > keys.pitch)):
            put(wanted, bounds.wanted_of_sample(best, scored, room), 0)
        with when(wanted[0] > 0):
            bound = local("bound_of_row", 1, U32)
            with choose(T.And(few[0] > 0, best <= answer)) as (answered, searched):
                with answered():
                    put(bound, self._answered(row, best), 0)
                with searched():
                    with choose(few[0] > 0) as (of_tiles, of_sample):
                        with of_tiles():
                            bounds.read_all(row.greatest, row.tiles)
                        with of_sample():
                            bounds.read_sample(row.keys, scored)
                    put(bound, bounds.find(wanted[0]), 0)
            with choose(few[0] > 0) as (of_tiles, of_sample):
                with of_tiles():
                    self._list(keys, row, bound[0], found, least=best)
                with of_sample():
                    marks = Marks(self.cta, self.kth, row.keys, scored, keys.at, room, row.room)
                    marks.list(bound[0], best, found)

    def _answered(self, row: _Tiles, best: Expr) -> Expr:
        """A bound of so few best that each warp answers for its share of them."""
        return self.shortlist.least(row.greatest_of_thread(), best, i32(self.cta.warps))

    def _list(self, keys: Held, row: _Tiles, bound: Expr, found: Buffer, least: Expr | None = None) -> None:
        """List the keys that reach the bound, of page tiles whose greatest does; none where less than ``least`` do."""
        room, mine = room_of(keys), local("found_here", 1, I32)
        listed = row.list_reaching(bound)
        put(mine, i32(0), 0)
        with choose(listed <= row.room) as (few, many):
            with few():
                row.each(listed, bound, lambda page, key, reaching: put(mine, mine[0] + count_bits(reaching), 0))
            with many():
                put(mine, i32(room + 1), 0)
        to = self.kth.before_warp(mine[0])
        put(found, self.kth.of_all_warps(), 0)
        if least is not None:
            with when(found[0] < least):
                put(found, i32(room + 1), 0)

        def enlist(page: Expr, key: Expr, reaching: Expr) -> None:
            with when(is_in(self.cta.lane, reaching)):
                at = let("at", to[0] + count_bits(T.bitwise_and(reaching, below(self.cta.lane))))
                put(keys.arena.u32, key, at + keys.at)
                put(keys.arena.i32, page, at + (keys.at + room))
            put(to, to[0] + count_bits(reaching), 0)

        with when(found[0] <= room):
            row.each(listed, bound, enlist)

    def _copy(self, keys: Held, scored: Expr) -> None:
        """Copy all keys of a row."""
        far, batch = keys.opened(), local("keys_to_copy", TOGETHER, U32)
        first = local("first_to_copy", 1, I32)
        with loop("copy_round", rounds_of(scored, TOGETHER * self.cta.threads), rolled=True) as turn:
            put(first, turn * (TOGETHER * self.cta.threads) + self.cta.thread, 0)
            for i in range(TOGETHER):
                put(batch, T.reinterpret(U32, far.get(T.min(first[0] + i * self.cta.threads, scored - 1))), i)
            for i in range(TOGETHER):
                with when(first[0] + i * self.cta.threads < scored):
                    put(keys.arena.u32, batch[i], first[0] + (keys.at + i * self.cta.threads))


@dataclass(frozen=True)
class _Tiles:
    """The page tiles of a row in the workspace, and a list of some of each warp's in shared memory."""

    cta: Cta
    arena: Arena
    at: int
    room: int
    """Page tiles that there is room for, for each warp."""
    keys: Opened
    greatest: Opened
    scored: Expr
    tiles: Expr

    def greatest_of_thread(self) -> Expr:
        """The greatest key of every so many page tiles; neighbours go to different warps, which have equally many."""
        most, first = local("greatest_of_thread", 1, U32), local("first_tile", 1, I32)
        batch = local("greatest_of_tiles", TOGETHER, U32)
        put(most, T.uint32(0), 0)
        with loop("tile_round", rounds_of(self.tiles, TOGETHER * self.cta.threads), rolled=True) as turn:
            put(first, turn * (TOGETHER * self.cta.threads) + (self.cta.lane * self.cta.warps + self.cta.warp), 0)
            # all loads are on their way before the first is looked at
            at = [first[0] + i * self.cta.threads for i in range(TOGETHER)]
            for i in range(TOGETHER):
                put(batch, T.reinterpret(U32, self.greatest.get(T.min(at[i], self.tiles - 1))), i)
            for i in range(TOGETHER):
                put(most, T.Select(at[i] < self.tiles, T.max(most[0], batch[i]), most[0]), 0)
        return most[0]

    def list_reaching(self, bound: Expr) -> Expr:
        """List the page tiles of this warp whose greatest key reaches the bound, ascending; says how many those are,
        which may be more than there is room for. A warp has a range of page tiles of its own, as in :class:`RowKeys`.
        """
        share, count, first = (local(name, 1, I32) for name in ("tiles_of_warp", "tiles_listed", "first_tile"))
        batch = local("greatest_of_tiles", TOGETHER, U32)
        put(share, rounds_of(self.tiles, self.cta.warps), 0)
        put(first, self.cta.warp * share[0] + self.cta.lane, 0)
        put(count, i32(0), 0)
        end = T.min(self.tiles, (self.cta.warp + 1) * share[0])
        with loop("tile_round", rounds_of(share[0], TOGETHER * WARP), rolled=True):
            for i in range(TOGETHER):
                put(batch, T.reinterpret(U32, self.greatest.get(T.min(first[0] + i * WARP, self.tiles - 1))), i)
            for i in range(TOGETHER):
                tile = first[0] + i * WARP
                reaching = let("reaching", ballot(T.And(tile < end, batch[i] >= bound)))
                to = let("to", count[0] + count_bits(T.bitwise_and(reaching, below(self.cta.lane))))
                with when(T.And(is_in(self.cta.lane, reaching), to < self.room)):
                    put(self.arena.i32, tile, to + self._listed)
                put(count, count[0] + count_bits(reaching), 0)
            put(first, first[0] + TOGETHER * WARP, 0)
        warp_sync()
        return count[0]

    def each(self, listed: Expr, bound: Expr, body: Callable[[Expr, Expr, Expr], None]) -> None:
        """Run ``body`` for the lanes' pages of each of ``listed`` page tiles, with their keys and the lanes whose keys
        reach the bound.
        """
        page, batch = local("page_of_lane", TOGETHER, I32), local("keys_of_tiles", TOGETHER, U32)
        with loop("listed_round", rounds_of(listed, TOGETHER), rolled=True) as turn:
            for i in range(TOGETHER):
                at = turn * TOGETHER + i
                tile = self.arena.i32[T.min(at, listed - 1) + self._listed]
                put(page, T.Select(at < listed, tile, self.tiles) * PAGE_TILE + self.cta.lane, i)
            for i in range(TOGETHER):
                put(batch, T.reinterpret(U32, self.keys.get(T.min(page[i], self.scored - 1))), i)
            for i in range(TOGETHER):
                reaches = T.And(page[i] < self.scored, batch[i] >= bound)
                body(page[i], batch[i], let("reaching", ballot(reaches)))

    @property
    def _listed(self) -> Expr:
        return self.cta.warp * self.room + self.at


def room_of(keys: Held) -> int:
    """How many keys with their pages there is room for, where a row on chip has its keys; page tiles take the rest."""
    return keys.pitch * 3 // 8


def _words_of_warp(keys: Held, cta: Cta) -> int:
    """Words behind the list for each warp: for page tiles, or for marks."""
    return (keys.pitch - 2 * room_of(keys)) // cta.warps


def is_in(lane: Expr, lanes: Expr) -> Expr:
    """Whether a lane is one of those whose bits are set."""
    return T.bitwise_and(T.shift_right(lanes, cast(U32, lane)), T.uint32(1)) > T.uint32(0)
