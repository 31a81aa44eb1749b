"""The best of at most as many keys as a CTA has threads: each looks up its rank among all.

A selection from a shortlist has so few. Positions ascend with pages, so what is chosen needs no sorting: its place is
the number of chosen ones before it.

    thread       0 1 2 3          4 5 6 7          8 ..
    key          0                1                2        4 threads each, up to 64 keys of 256 threads
    against      0 1 2 3, 4 ..    0 1 2 3, 4 ..
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP, cta_sync, quotient, remainder, shuffle_xor
from vortex.codegen.cuda.select.key_list import is_better
from vortex.codegen.cuda.storage import Arena, Held
from vortex.codegen.cuda.warp import Cta, ballot, below, count_bits
from vortex.codegen.tir import I32, U32, Buffer, Expr, T, equal, i32, let, local, loop, put, when


@dataclass(frozen=True)
class FewKeys:
    """The keys of the first ``count`` positions, of which there are ``limit`` at most."""

    cta: Cta
    arena: Arena
    at: int
    """Where they come to shared memory: there is a word for each thread."""
    keys: Held
    count: Expr
    limit: int

    @property
    def each(self) -> int:
        """Threads of a key: a power of two, of one warp."""
        return min(WARP, 1 << ((self.cta.threads // self.limit).bit_length() - 1))

    def take(self, best: Expr, before_warp: Callable[[Expr], Buffer], place: Callable[[Expr, Expr], None]) -> None:
        """Call ``place(position, n)`` for the ``best`` best, n counting positions as they ascend; ``before_warp`` sums
        a number of each warp over the warps before, with a barrier.
        """
        each, thread = self.each, self.cta.thread
        rounds = -(-self.limit // each)
        self._copy(rounds * each)
        cta_sync()
        mine, first = let("mine", quotient(thread, i32(each))), let("first_other", remainder(thread, i32(each)))
        key = let("its_key", self._key(T.min(mine, i32(self.limit - 1))))
        better = local("better", 1, I32)
        put(better, i32(0), 0)
        with loop("round", rounds) as j:
            other = let("other", j * each + first)
            put(better, better[0] + T.Select(is_better(self._key(other), other, key, mine), i32(1), i32(0)), 0)
        mask = 1
        while mask < each:
            put(better, better[0] + shuffle_xor(better[0], mask), 0)
            mask *= 2
        chosen = let("is_chosen", T.And(equal(first, i32(0)), T.And(mine < self.count, better[0] < best)))
        lanes = let("chosen", ballot(chosen))
        before = before_warp(let("chosen_by_warp", count_bits(lanes)))
        with when(chosen):
            place(mine, before[0] + count_bits(T.bitwise_and(lanes, below(self.cta.lane))))

    def _copy(self, words: int) -> None:
        """Bring the keys to shared memory, behind the last the least one, which no other ranks below."""
        held = local("key_of_thread", 1, U32)
        at = let("at", T.min(self.cta.thread, self.count - 1))

        def read(get: Callable[[Expr], Expr]) -> None:
            put(held, T.reinterpret(U32, get(at)), 0)

        opened = self.keys.opened()
        self.keys.where_it_lies(lambda: read(self.keys.near), lambda: read(opened.get))
        with when(self.cta.thread < words):
            put(self.arena.u32, T.Select(self.cta.thread < self.count, held[0], T.uint32(0)), self.cta.thread + self.at)

    def _key(self, position: Expr) -> Expr:
        return self.arena.u32[position + self.at]
