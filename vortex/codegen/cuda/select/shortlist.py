"""The best of a row when few are wanted: candidates that may be among them are listed, and each looks up its rank.

Every step but the first touches the list alone, so that what a row costs hardly depends on its pages. The list comes
in any order; ranks are counted and pages set bits, so the result does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP, cta_sync, shuffle_xor, warp_extreme
from vortex.codegen.cuda.select.key_list import KeyList, is_better
from vortex.codegen.cuda.select.row_keys import RowKeys
from vortex.codegen.cuda.select.taken import Taken
from vortex.codegen.cuda.storage import Arena
from vortex.codegen.cuda.warp import Cta, ballot, count_bits, rounds_of
from vortex.codegen.tir import I32, U32, Buffer, Expr, T, choose, equal, i32, let, local, loop, put, when

ONE_BY_ONE = 8
"""Keys up to which a warp finds its answer exactly, which is as many as a list of the best asks for. Beyond them it
answers for all of its threads: the bound is lower, and found sooner.
"""
SHORT = 5
"""Threads for each page that is wanted, at least, where ranks are worth their work."""
NONE = 0xFFFFFFFF
"""A key that no page has: it is above that of +inf."""


@dataclass(frozen=True)
class Shortlist:
    """A list of at most one key for each thread of the CTA; holds the shared memory it takes."""

    cta: Cta
    arena: Arena
    listed: KeyList
    """Key and page of each."""
    taken: Taken
    bounds: int
    """Where the answer of each warp stands."""

    @classmethod
    def reserve(cls, cta: Cta, arena: Arena) -> Shortlist:
        """Take the shared memory."""
        at, taken, bounds = arena.take(2 * cta.threads), Taken.reserve(cta, arena), arena.take(cta.warps)
        return cls(cta, arena, KeyList(arena, at, at + 1, 2, arena.take(1), cta.threads), taken, bounds)

    @property
    def room(self) -> int:
        """Keys there is room for."""
        return self.cta.threads

    def answers(self, best: Expr) -> Expr:
        """Whether warps can answer for their share of the ``best`` best."""
        return best <= self.cta.threads

    def is_short(self, best: Expr, pages: Expr) -> Expr:
        """Whether the list of the ``best`` best of so many ``pages``, about twice as many, is worth its ranks, which
        cost its square; there must be a bit for every page.
        """
        return T.And(SHORT * best <= self.cta.threads, self.taken.has_room(rounds_of(pages, WARP)))

    def least(self, greatest: Expr, best: Expr, warps: Expr) -> Expr:
        """A key such that ``best`` keys are no smaller, and not many more; ``greatest`` is that of this thread, and the
        first ``warps`` have keys.

        Each of these answers for its share: as many of its threads have a key that is no smaller than its answer. The
        least answer of all warps has enough keys above it. Where threads cannot answer it is 0, as all keys are.
        """
        share = let("share_of_best", rounds_of(best, warps))
        bound = local("bound", 1, U32)
        put(bound, T.uint32(NONE), 0)
        with when(self.cta.warp < warps), choose(share <= ONE_BY_ONE) as (few, many):
            with few():
                self._count_down(greatest, share, bound)
            with many():
                put(bound, T.Select(share <= WARP, warp_extreme("min", greatest), T.uint32(0)), 0)
        shared = self.arena.u32
        with when(equal(self.cta.lane, i32(0))):
            put(shared, bound[0], self.cta.warp + self.bounds)
        with when(equal(self.cta.thread, i32(0))):
            put(self.arena.i32, i32(0), self.listed.count_at)
        self.taken.clear()
        cta_sync()
        for w in range(self.cta.warps):
            put(bound, T.min(bound[0], shared[self.bounds + w]), 0)
        return let("least", bound[0])

    def _count_down(self, greatest: Expr, count: Expr, bound: Buffer) -> None:
        """The largest key such that ``count`` lanes have one as ``greatest`` that is no smaller, or 0."""
        mine, left = local("mine_left", 1, U32), local("lanes_left", 1, I32)
        put(mine, greatest, 0)
        put(left, count, 0)
        with T.While(left[0] > 0):
            put(bound, warp_extreme("max", mine[0]), 0)
            hit = let("hit", equal(mine[0], bound[0]))
            put(left, left[0] - count_bits(ballot(hit)), 0)
            put(mine, T.Select(hit, T.uint32(0), mine[0]), 0)

    def gather(self, keys: RowKeys, least: Expr) -> Expr:
        """List all keys from ``least`` on, and say how many there are, which may be more than there is room for."""

        def enlist(s: Expr, inside: Expr, key: Expr) -> None:
            with when(T.And(inside, key >= least)):
                self.listed.append(key, s)

        keys.each(enlist)
        cta_sync()
        return let("listed_in_all", self.arena.i32[self.listed.count_at])

    def take(
        self, count: Expr, best: Expr, before_warp: Callable[[Expr], Buffer], place: Callable[[Expr, Expr], None]
    ) -> None:
        """Call ``place(page, n)`` for the ``best`` best of ``count`` listed keys, n counting pages as they ascend;
        ``before_warp`` sums a number of each warp over the warps before, with a barrier.

        Where there are several threads for each of the list, these share the others that it is compared with:

            thread       0 1 2 3          4 5 6 7          8 ..
            entry        0                1                2        4 threads each, up to 64 entries of 256 threads
            against      0 1 2 3, 4 ..    0 1 2 3, 4 ..
        """
        shift = let("shift", T.Select(8 * count <= self.cta.threads, i32(3), self._shift(count)))
        each = let("threads_of_entry", T.shift_left(i32(1), shift))
        entry = let("entry", T.shift_right(self.cta.thread, shift))
        first = let("first_other", T.bitwise_and(self.cta.thread, each - 1))
        others = let("others", T.shift_right(count - first + (each - 1), shift))
        with when(self.cta.warp * WARP < T.shift_left(count, shift)):
            key, page = self._listed(let("mine", T.min(entry, count - 1)))
            better = local("better", 1, I32)
            put(better, i32(0), 0)
            with loop("other", others) as j:
                its_key, its_page = self._listed(let("other_entry", T.shift_left(j, shift) + first))
                put(better, better[0] + T.Select(is_better(its_key, its_page, key, page), i32(1), i32(0)), 0)
            self._sum(better, each)
            with when(T.And(equal(first, i32(0)), T.And(entry < count, better[0] < best))):
                self.taken.take(page)
        self.taken.place(before_warp, place)

    def _shift(self, count: Expr) -> Expr:
        return T.Select(4 * count <= self.cta.threads, i32(2), T.Select(2 * count <= self.cta.threads, i32(1), i32(0)))

    def _sum(self, mine: Buffer, each: Expr) -> None:
        """Add up what the threads of an entry have found."""
        for mask in (1, 2, 4):
            across = let("across", shuffle_xor(mine[0], mask))
            put(mine, mine[0] + T.Select(each > mask, across, i32(0)), 0)

    def _listed(self, at: Expr) -> tuple[Expr, Expr]:
        """Key and page of an entry, read here."""
        return let("its_key", self.listed.key(at)), let("its_page", self.listed.page(at))
