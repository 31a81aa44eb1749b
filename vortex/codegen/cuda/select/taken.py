"""Pages that are taken, as bits in shared memory, and their places in the selection.

A bit stands for a page, a word for 32 pages, and each thread has one word. What a thread places begins where the words
before it end, so the order in which bits were set does not matter:

    thread      0          1          2          ..
    bits        1 0 1 0    0 0 0 1    1 1 0 0
    places      0   1            2    3 4
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP, cta_sync, quotient, shuffle
from vortex.codegen.cuda.storage import Arena
from vortex.codegen.cuda.warp import Cta, add_at, count_bits, each_bit, warp_prefix
from vortex.codegen.tir import I32, U32, Buffer, Expr, T, i32, let, local, put


@dataclass(frozen=True)
class Taken:
    """A bit for each of so many pages as a CTA of that many threads has bits; holds the shared memory it takes."""

    cta: Cta
    arena: Arena
    at: int

    @classmethod
    def reserve(cls, cta: Cta, arena: Arena) -> Taken:
        """Take the shared memory."""
        return cls(cta, arena, arena.take(cta.threads))

    def has_room(self, words: Expr) -> Expr:
        """Whether there are so many words."""
        return words <= self.cta.threads

    def clear(self) -> None:
        """Take no page; a barrier must follow."""
        put(self.arena.u32, T.uint32(0), self.cta.thread + self.at)

    def take(self, page: Expr) -> None:
        """Set the bit of a page, once; any threads may do so at the same time."""
        bit = T.shift_left(i32(1), T.bitwise_and(page, i32(WARP - 1)))
        add_at(self.arena.i32.ptr_to([quotient(page, i32(WARP)) + self.at]), bit)

    def put_word(self, word: Expr, bits: Expr) -> None:
        """Set all bits of a word."""
        put(self.arena.u32, bits, word + self.at)

    def place(self, before_warp: Callable[[Expr], Buffer], place: Callable[[Expr, Expr], None]) -> None:
        """Call ``place(page, n)`` for the pages that were taken, n counting them as they ascend; ``before_warp`` sums a
        number of each warp over the warps before, with a barrier.
        """
        cta_sync()
        left, at = local("left_of_word", 1, U32), local("place", 1, I32)
        put(left, self.arena.u32[self.cta.thread + self.at], 0)
        mine = let("taken_here", count_bits(left[0]))
        up_to = let("up_to_here", warp_prefix(mine, lambda a, b: a + b, self.cta.lane))
        before = before_warp(let("taken_by_warp", shuffle(up_to, i32(WARP - 1))))
        put(at, before[0] + up_to - mine, 0)

        def take(bit: Expr) -> None:
            place(self.cta.thread * WARP + bit, at[0])
            put(at, at[0] + 1, 0)

        each_bit(left, take)
