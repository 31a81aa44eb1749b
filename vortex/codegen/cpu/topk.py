"""Exact, deterministic top-k over one row's keys: the k-th key bit by bit, then one ascending sweep.

Counting how many keys reach a candidate threshold is one vector compare per lane, so 32 counts over
a row cost less than sorting it, and the sweep finds the pages in ascending order by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Choice:
    """The ``kept`` candidates of a row with the largest keys."""

    key: Callable[[Expr], Expr]
    """Gives the key of a candidate."""
    clear: Callable[[Expr], None] | None
    """Makes the key of a place beyond the candidates 0; None where what lies there is needed."""
    kept: Expr


def emit_topk(choices: Sequence[Choice], pages: Buffer, counts: Buffer, row: Row, n: Expr, capacity: Expr) -> None:
    """Write the candidates of all ``choices`` and all reserved of the ``n`` pages, ascending, and their count."""
    r, h, first, scored = row.request, row.head, row.first, row.scored
    chunks = let("chunks", T.floordiv(scored + (LANES - 1), T.int32(LANES)))
    bounds = [_bound(choice, scored, chunks) for choice in choices]
    end = local("end", 1, I32)
    put(end, T.int32(0), 0)

    def take(p: Expr) -> None:
        with when(end[0] < capacity):
            put(pages, p, r, h, end[0])
            put(end, end[0] + 1, 0)

    with loop("p", first) as p:
        take(p)
    with loop("s", scored) as s:
        taken: Expr = None
        ties = []
        for choice, (threshold, room) in zip(choices, bounds, strict=True):
            mine = let("mine", choice.key(s))
            tied = let("tied", T.And(equal(mine, threshold[0]), room[0] > 0))
            passes = T.Or(mine > threshold[0], tied)
            taken = passes if taken is None else T.Or(taken, passes)
            ties.append((tied, room))
        with when(taken):
            take(first + s)
            for tied, room in ties:
                with when(tied):
                    put(room, room[0] - 1, 0)
    with loop("p", n, start=first + scored) as p:
        take(p)
    put(counts, end[0], r, h)


def emit_shortlist(key: Callable[[Expr], Expr], pages: Expr, kept: Expr, to: Buffer) -> None:
    """List the ``kept`` pages of ``pages`` with the largest keys in ``to``, ascending, by their positions."""
    chunks = let("chunks", T.floordiv(pages + (LANES - 1), T.int32(LANES)))
    threshold, room = _bound(Choice(key, None, kept), pages, chunks)
    end = local("end", 1, I32)
    put(end, T.int32(0), 0)
    with loop("s", pages) as s:
        mine = let("mine", key(s))
        tied = let("tied", T.And(equal(mine, threshold[0]), room[0] > 0))
        with when(T.Or(mine > threshold[0], tied)):
            put(to, s, end[0])
            put(end, end[0] + 1, 0)
            with when(tied):
                put(room, room[0] - 1, 0)


def _bound(choice: Choice, scored: Expr, chunks: Expr) -> tuple[Buffer, Buffer]:
    """The last key that is taken, and how many of those that have it are."""
    key = choice.key
    if choice.clear is None:

        def key(position: Expr) -> Expr:
            return T.Select(position < scored, choice.key(position), T.uint32(0))

    else:
        with loop("pad", LANES) as pad:
            choice.clear(scored + pad)
    threshold = local("threshold", 1, "uint32")
    put(threshold, T.uint32(0), 0)
    with loop("bit", 32) as bit:
        trial = let("trial", T.bitwise_or(threshold[0], T.shift_left(T.uint32(1), T.Cast("uint32", 31 - bit))))
        reached = _count(key, chunks, lambda k: k >= trial)
        with when(reached >= choice.kept):
            put(threshold, trial, 0)
    above = _count(key, chunks, lambda k: k > threshold[0])
    room = local("room", 1, I32)
    put(room, choice.kept - above, 0)
    return threshold, room


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
