"""A key that the best of a long row reach and few others do, before any of them is known.

Each thread holds some of its keys, and all find together the one that as many of those as are wanted reach. They are

* the greatest of each page tile, where so few pages are wanted that page tiles bound them: as many keys reach it;
* else a sample: of it so many reach the bound that of the row a few more than are wanted do, in all likelihood.

    keys       9 2 7 3 8 1 4 6 ..    3 of 8 are wanted
    sample       2   3     4         the bound is 3, which 6 reach
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.cuda.ptx import cta_sync, quotient
from vortex.codegen.cuda.select.kth_key import KthKey
from vortex.codegen.cuda.storage import Opened
from vortex.codegen.cuda.warp import Cta, warp_fold
from vortex.codegen.tir import F32, I32, U32, Buffer, Expr, T, cast, equal, f32, i32, let, local, put, register, when

EACH = 32
"""Keys that a thread holds: a sample of 8192 by 256 threads, of which 2048 of 65,536 are 256 or so."""
SURE = 3.5
"""Standard deviations by which more of the sample reach the bound than should: 1 row of 4000 falls short of it."""
CLOSE = 16
"""The search ends where so many wanted keys have one too many above it."""
SPREAD = 2654435761
"""2^32 over the golden ratio: the leading bits of its multiples are spread evenly."""
SPREAD_BITS = 12


@dataclass(frozen=True)
class KeyBound:
    """Bounds keys of a row by ``EACH`` of every thread's."""

    cta: Cta
    kth: KthKey
    """Whose shared memory it takes."""
    held: Buffer

    @classmethod
    def open(cls, cta: Cta, kth: KthKey) -> KeyBound:
        """Without keys yet."""
        return cls(cta, kth, local("keys_of_bound", EACH, U32))

    @property
    def size(self) -> int:
        """Keys of all threads."""
        return EACH * self.cta.threads

    def wanted_of_sample(self, best: Expr, scored: Expr, room: int) -> Expr:
        """How many of a sample bound the ``best`` best of ``scored`` keys; 0 where about as many reach the bound as
        there is room for.
        """
        wanted = local("wanted_of_sample", 1, I32)
        mean = let("mean_of_sample", cast(F32, best) * f32(self.size) / cast(F32, scored))
        put(wanted, cast(I32, mean + f32(SURE) * T.sqrt(mean)) + 2, 0)
        fits = cast(F32, wanted[0]) * cast(F32, scored) <= f32(self.size * room)
        return T.Select(fits, wanted[0], i32(0))

    def read_sample(self, keys: Opened, scored: Expr) -> None:
        """Hold one out of each of as many equal parts of the row as there are threads' keys, at a place of its own, for
        what comes again and again in a row may do so at any distance.
        """
        # rows of up to 2^24 pages: a number of the sample times the size of a part is a place in 2^-8 pages
        part = register("part", quotient(T.shift_left(cast(U32, scored), T.uint32(8)), T.uint32(self.size)), U32)
        for i in range(EACH):
            number = let("number_in_sample", cast(U32, self.cta.thread + i * self.cta.threads))
            spread = T.shift_right(number * T.uint32(SPREAD), T.uint32(32 - SPREAD_BITS))
            inner = T.shift_right(spread * T.shift_right(part, T.uint32(8)), T.uint32(SPREAD_BITS))
            at = cast(I32, T.shift_right(number * part, T.uint32(8)) + inner)
            put(self.held, T.reinterpret(U32, keys.get(at)), i)

    def read_all(self, keys: Opened, count: Expr) -> None:
        """Hold all ``count`` keys, of which there are no more than threads hold."""
        for i in range(EACH):
            put(self.held, T.uint32(0), i)
        for i in range(EACH):
            with when(i32(i * self.cta.threads) < count):
                at = let("at", self.cta.thread + i * self.cta.threads)
                found = T.reinterpret(U32, keys.get(T.min(at, count - 1)))
                put(self.held, T.Select(at < count, found, T.uint32(0)), i)

    def find(self, wanted: Expr) -> Expr:
        """A key that ``wanted`` of those held reach, and few more; all threads find it."""
        shared, bound, bit = self.kth.arena.i32, local("bound", 1, U32), local("bit_of_bound", 1, U32)
        mine, turn = local("reaching_here", 1, I32), local("turn", 1, I32)
        put(bound, T.uint32(0), 0)
        put(bit, T.uint32(1 << 31), 0)
        put(turn, i32(0), 0)
        with T.While(bit[0] > T.uint32(0)):
            trial = let("trial", T.bitwise_or(bound[0], bit[0]))
            put(bit, T.shift_right(bit[0], T.uint32(1)), 0)
            put(mine, i32(0), 0)
            for i in range(EACH):
                put(mine, mine[0] + T.Select(self.held[i] >= trial, i32(1), i32(0)), 0)
            of_warp = warp_fold(mine[0], lambda a, b: a + b, "reaching")
            # sums of two turns lie apart: a barrier between them is enough
            at = let("sums", turn[0] * self.cta.warps + self.kth.sums)
            with when(equal(self.cta.lane, i32(0))):
                put(shared, of_warp, self.cta.warp + at)
            cta_sync()
            put(turn, 1 - turn[0], 0)
            put(mine, i32(0), 0)
            for w in range(self.cta.warps):
                put(mine, mine[0] + shared[at + w], 0)
            with when(mine[0] >= wanted):
                put(bound, trial, 0)
                with when(mine[0] <= wanted + quotient(wanted, i32(CLOSE))):
                    put(bit, T.uint32(0), 0)
        return bound[0]
