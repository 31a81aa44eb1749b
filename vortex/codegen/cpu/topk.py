"""Exact, deterministic top-k over one row's keys: the k-th key bit by bit, then one ascending sweep.

Counting how many keys reach a candidate threshold is one vector compare per lane, so 32 counts over
a row cost less than sorting it, and the sweep finds the pages in ascending order by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.sweep import Row
from vortex.codegen.tir import I32, Buffer, Expr, T, equal, let, local, loop, put, when
from vortex.codegen.tir import lanes as vector

LANES = 16
"""Keys that are compared at once."""


def emit_keep_all(pages: Buffer, counts: Buffer, r: Expr, h: Expr, n: Expr, capacity: Expr) -> None:
    """Write every page of a row that fits its budget."""
    with loop("p", T.min(n, capacity)) as p:
        put(pages, p, r, h, p)
    put(counts, T.min(n, capacity), r, h)


def emit_topk(
    key: Callable[[Expr], Expr],
    clear: Callable[[Expr], None],
    pages: Buffer,
    counts: Buffer,
    row: Row,
    kept: Expr,
    n: Expr,
    capacity: Expr,
) -> None:
    """Write the ``kept`` candidates with the largest keys and all reserved of the ``n`` pages, ascending, and their
    count.

    ``key`` gives the key of a candidate, ``clear`` makes the key of a place beyond the candidates 0.
    """
    r, h, first, scored = row.request, row.head, row.first, row.scored
    chunks = let("chunks", T.floordiv(scored + (LANES - 1), T.int32(LANES)))
    with loop("pad", LANES) as pad:
        clear(scored + pad)
    best = Best.find(key, chunks, kept)
    end = local("end", 1, I32)
    put(end, T.int32(0), 0)

    def take(p: Expr) -> None:
        with when(end[0] < capacity):
            put(pages, p, r, h, end[0])
            put(end, end[0] + 1, 0)

    with loop("p", first) as p:
        take(p)
    best.each(key, scored, lambda s: take(first + s))
    with loop("p", n, start=first + scored) as p:
        take(p)
    put(counts, end[0], r, h)


def emit_shortlist(key: Callable[[Expr], Expr], pages: Expr, kept: Expr, to: Buffer) -> None:
    """List the ``kept`` pages of ``pages`` with the largest keys in ``to``, ascending, by their positions.

    ``key`` gives the key of a page; beyond the last page, up to a whole vector, it may be asked for any word.
    """

    def inside(s: Expr) -> Expr:
        return T.Select(s < pages, key(s), T.uint32(0))

    chunks = let("chunks", T.floordiv(pages + (LANES - 1), T.int32(LANES)))
    best = Best.find(inside, chunks, kept)
    end = local("end", 1, I32)
    put(end, T.int32(0), 0)

    def take(s: Expr) -> None:
        put(to, s, end[0])
        put(end, end[0] + 1, 0)

    best.each(inside, pages, take)


@dataclass(frozen=True)
class Best:
    """The best keys of a row: those above the threshold, and as many equal to it as there is room for, first ones
    first.
    """

    threshold: Buffer
    room: Buffer

    @classmethod
    def find(cls, key: Callable[[Expr], Expr], chunks: Expr, kept: Expr) -> Best:
        """Find the threshold of the ``kept`` best; the vectors of ``chunks`` hold all keys, and 0 beyond the last."""
        threshold = local("threshold", 1, "uint32")
        put(threshold, T.uint32(0), 0)
        with loop("bit", 32) as bit:
            trial = let("trial", T.bitwise_or(threshold[0], T.shift_left(T.uint32(1), T.Cast("uint32", 31 - bit))))
            reached = _count(key, chunks, lambda k: k >= trial)
            with when(reached >= kept):
                put(threshold, trial, 0)
        above = _count(key, chunks, lambda k: k > threshold[0])
        room = local("room", 1, I32)
        put(room, kept - above, 0)
        return cls(threshold, room)

    def each(self, key: Callable[[Expr], Expr], pages: Expr, take: Callable[[Expr], None]) -> None:
        """Call ``take`` with the position of each of them, ascending; ``pages`` is how many keys there are."""
        with loop("s", pages) as s:
            mine = let("mine", key(s))
            tied = let("tied", T.And(equal(mine, self.threshold[0]), self.room[0] > 0))
            with when(T.Or(mine > self.threshold[0], tied)):
                take(s)
                with when(tied):
                    put(self.room, self.room[0] - 1, 0)


def _count(key: Callable[[Expr], Expr], chunks: Expr, test: Callable[[Expr], Expr]) -> Expr:
    """How many keys pass ``test``; keys past the row's end are 0 and pass no test that matters."""
    hits = local("hits", LANES, I32)
    with vector(LANES) as lane:
        put(hits, T.int32(0), lane)
    with loop("c", chunks) as c, vector(LANES) as lane:
        put(hits, hits[lane] + T.Select(test(key(c * LANES + lane)), T.int32(1), T.int32(0)), lane)
    half = LANES // 2
    while half:
        with vector(half) as lane:
            put(hits, hits[lane] + hits[half + lane], lane)
        half //= 2
    return let("count", hits[0])
