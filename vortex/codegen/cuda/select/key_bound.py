"""A key that the best of a long row reach and few others do, before any of them is known.

Each thread holds some of its keys, and all find together the one that as many of those as are wanted reach. They are

* the greatest of each page tile, where so few pages are wanted that page tiles bound them: as many keys reach it;
* else a sample: of it so many reach the bound that of the row a few more than are wanted do, in all likelihood.

    keys       9 2 7 3 8 1 4 6 ..    3 of 8 are wanted
    sample       2   3     4         the bound is 3, which 6 reach
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.cuda.ptx import cta_sync, quotient, warp_sum
from vortex.codegen.cuda.select.kth_key import KthKey
from vortex.codegen.cuda.storage import Opened
from vortex.codegen.cuda.warp import Cta
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
    f32,
    i32,
    let,
    local,
    loop,
    put,
    register,
    when,
)

EACH = 24
"""Keys that a thread holds: a sample of 6144 by 256 threads, of which 2048 of 65,536 are 192 or so."""
SURE = 4.0
"""Standard deviations by which more of the sample reach the bound than should, where there is room for what then does:
hardly any row falls short of it.
"""
CLOSE = 64
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
        of_key = let("sample_of_key", f32(self.size) / cast(F32, scored))
        mean, most = let("mean_of_sample", cast(F32, best) * of_key), let("room_of_sample", f32(room) * of_key)
        more = let("more_of_sample", f32(SURE) * T.sqrt(mean))
        put(wanted, cast(I32, mean + T.min(more, (most - mean) * f32(0.5))) + 2, 0)
        return T.Select(mean + more <= most, wanted[0], i32(0))

    def read_sample(self, keys: Opened, scored: Expr) -> None:
        """Hold one out of each of as many equal parts of the row as there are threads' keys, at a place of its own, for
        what comes again and again in a row may do so at any distance.
        """
        # rows of up to 2^24 pages: a number of the sample times the size of a part is a place in 2^-8 pages
        part = register("part", quotient(T.shift_left(cast(U32, scored), T.uint32(8)), T.uint32(self.size)), U32)
        with loop("i", EACH) as i:
            number = let("number_in_sample", cast(U32, self.cta.thread + i * self.cta.threads))
            spread = T.shift_right(number * T.uint32(SPREAD), T.uint32(32 - SPREAD_BITS))
            inner = T.shift_right(spread * T.shift_right(part, T.uint32(8)), T.uint32(SPREAD_BITS))
            at = cast(I32, T.shift_right(number * part, T.uint32(8)) + inner)
            put(self.held, T.reinterpret(U32, keys.get(at)), i)

    def read_all(self, keys: Opened, count: Expr) -> None:
        """Hold all ``count`` keys, of which there are no more than threads hold."""
        with loop("i", EACH) as i:
            put(self.held, T.uint32(0), i)
            with when(i * self.cta.threads < count):
                at = let("at", i * self.cta.threads + self.cta.thread)
                found = T.reinterpret(U32, keys.get(T.min(at, count - 1)))
                put(self.held, T.Select(at < count, found, T.uint32(0)), i)

    def find(self, wanted: Expr) -> Expr:
        """A key that ``wanted`` of those held reach, and few more, by halves of their range; all threads find it.

        Fewer may reach it where many are NaN, whose keys are 0.
        """
        low, high, reaching = (local(name, 1, U32) for name in ("bound", "highest", "reaching_here"))
        enough, turn = let("close_enough", cast(U32, wanted + quotient(wanted, i32(CLOSE)))), local("turn", 1, I32)
        put(low, T.uint32(0xFFFFFFFF), 0)
        put(high, T.uint32(0), 0)
        with loop("i", EACH) as i:
            key = self.held[i]
            put(low, T.Select(key > T.uint32(0), T.min(low[0], key), low[0]), 0)
            put(high, T.max(high[0], key), 0)
        self.kth.range_of_all(low, high)
        cta_sync()  # the range is read by all
        put(turn, i32(0), 0)
        shared, sums = self.kth.arena.u32, self.kth.sums
        with T.While(low[0] < high[0]):
            trial = let("trial", high[0] - T.shift_right(high[0] - low[0], T.uint32(1)))
            put(reaching, T.uint32(0), 0)
            with loop("i", EACH) as i:
                put(reaching, reaching[0] + T.Select(self.held[i] >= trial, T.uint32(1), T.uint32(0)), 0)
            of_warp = warp_sum(reaching[0])
            # the sums of two turns lie apart: a barrier between them is enough
            at = let("sums", turn[0] * self.cta.warps + sums)
            with when(equal(self.cta.lane, i32(0))):
                put(shared, of_warp, self.cta.warp + at)
            cta_sync()
            put(turn, 1 - turn[0], 0)
            put(reaching, T.uint32(0), 0)
            for w in range(self.cta.warps):
                put(reaching, reaching[0] + shared[at + w], 0)
            with choose(reaching[0] >= cast(U32, wanted)) as (many, few):
                with many():
                    put(low, trial, 0)
                    with when(reaching[0] <= enough):
                        put(high, trial, 0)
                with few():
                    put(high, trial - T.uint32(1), 0)
        return low[0]
