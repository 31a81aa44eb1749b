"""How the threads of a CTA work together: loops over elements, warp-wide folds and scans, votes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm.backend.cuda.script import CUDANamespace

from vortex.codegen.cuda.ptx import WARP, shuffle_xor
from vortex.codegen.tir import U32, Buffer, Expr, T, let, loop, put, when

_CUDA = CUDANamespace()
ALL = 0xFFFFFFFF


def ballot(condition: Expr) -> Expr:
    """A word whose bit i tells whether the condition holds in lane i; all 32 lanes take part."""
    return _CUDA.ballot_sync(T.uint32(ALL), condition)


def count_bits(x: Expr) -> Expr:
    """How many bits of a word are set."""
    return T.Cast("int32", T.popcount(x))


def each_bit(left: Buffer, body: Callable[[Expr], None]) -> None:
    """Call ``body`` for each bit that is set in a word, from the lowest on; nothing of the word is ``left`` then."""
    with T.While(left[0] > T.uint32(0)):
        lowest = T.bitwise_and(left[0], T.uint32(0) - left[0])
        body(let("bit", 31 - T.Cast("int32", T.clz(lowest))))
        put(left, T.bitwise_and(left[0], left[0] - T.uint32(1)), 0)


def below(lane: Expr) -> Expr:
    """The bits of the lanes before this one."""
    return T.shift_left(T.uint32(1), T.Cast(U32, lane)) - T.uint32(1)


@dataclass(frozen=True)
class InOrder:
    """Places what lanes take, round by round, and in a round by lane."""

    count: Buffer
    """The place of the next one."""
    earlier: Expr
    """The bits of the lanes before this one."""
    bit: Expr
    """That of this lane."""

    @classmethod
    def open(cls, lane: Expr, count: Buffer) -> InOrder:
        """From place ``count`` on."""
        earlier = let("earlier", below(lane))
        return cls(count, earlier, let("bit", T.shift_left(T.uint32(1), T.Cast(U32, lane))))

    def take(self, lanes: Expr, place: Callable[[Expr], None]) -> None:
        """Call ``place(n)`` in those ``lanes`` whose bits are set; all lanes take part."""
        with when(T.bitwise_and(lanes, self.bit) > T.uint32(0)):
            place(self.count[0] + count_bits(T.bitwise_and(lanes, self.earlier)))
        put(self.count, self.count[0] + count_bits(lanes), 0)


def shuffle_up(x: Expr, distance: int) -> Expr:
    """``x`` of the lane that stands ``distance`` before this one; the first lanes keep their own."""
    return T.tvm_warp_shuffle_up(T.uint32(ALL), x, distance, WARP, WARP)


def add_at(address: Expr, x: Expr) -> None:
    """Add an integer atomically: the sum does not depend on the order."""
    T.evaluate(_CUDA.atomic_add(address, x))


def fetch_add(address: Expr, x: Expr) -> Expr:
    """What was there before ``x`` was added, atomically: as many different answers as there are threads."""
    return _CUDA.atomic_add(address, x)


def warp_fold(x: Expr, take: Callable[[Expr, Expr], Expr], name: str = "fold") -> Expr:
    """``x`` of all 32 lanes folded in a fixed tree; every lane has the result."""
    for mask in (16, 8, 4, 2, 1):
        x = let(name, x)
        x = take(x, let(f"{name}_across", shuffle_xor(x, mask)))
    return let(name, x)


def warp_prefix(x: Expr, take: Callable[[Expr, Expr], Expr], lane: Expr, name: str = "prefix") -> Expr:
    """The fold of ``x`` over this lane and all before it."""
    for distance in (1, 2, 4, 8, 16):
        x = let(name, x)
        before = let(f"{name}_before", shuffle_up(x, distance))
        x = T.Select(lane >= distance, take(before, x), x)
    return let(name, x)


@dataclass(frozen=True)
class Cta:
    """The place of a thread in its CTA: ``thread = warp * 32 + lane`` of ``threads``."""

    warp: Expr
    lane: Expr
    thread: Expr
    threads: int

    @classmethod
    def open(cls, threads: int) -> Cta:
        """Bind the place of the thread, at the beginning of a kernel."""
        warp, lane = let("warp", T.warp_id([threads // WARP])), let("lane", T.lane_id([WARP]))
        return cls(warp, lane, let("thread", warp * WARP + lane), threads)

    @property
    def warps(self) -> int:
        return self.threads // WARP

    @contextmanager
    def share(self, name: str, count: int | Expr) -> Iterator[Expr]:
        """``for name in range(count)`` dealt out to the threads of the CTA in turn.

        A count that is not known here stays a loop, for it is seldom more than a turn: what a CTA does once is as fast
        as its instructions come from memory, so code that is not run must not lie in between.
        """
        if isinstance(count, int) and count <= self.threads:
            if count == self.threads:
                yield self.thread
            else:
                with when(self.thread < count):
                    yield self.thread
            return
        whole = isinstance(count, int) and count % self.threads == 0
        rounds = -(-count // self.threads) if isinstance(count, int) else rounds_of(count, self.threads)
        with loop(f"{name}_round", rounds, rolled=not isinstance(count, int)) as turn:
            at = let(name, turn * self.threads + self.thread)
            if whole:
                yield at
            else:
                with when(at < count):
                    yield at


def rounds_of(count: Expr, step: int) -> Expr:
    """How many steps cover ``count`` >= 0."""
    return T.truncdiv(count + (step - 1), T.int32(step))
