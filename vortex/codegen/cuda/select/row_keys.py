"""The keys of a row, as the threads of a CTA go over them again and again in the choice of pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP
from vortex.codegen.cuda.storage import Arena, Held, Opened
from vortex.codegen.cuda.warp import Cta, rounds_of
from vortex.codegen.tir import I32, U32, Buffer, Expr, T, i32, let, local, loop, put, when

FAR = 4
"""Keys beyond those in registers that are read together."""

Body = Callable[[Expr, Expr, Expr], None]
"""Takes a page, whether there is one, and its key."""


@dataclass(frozen=True)
class Pages:
    """The candidates that keys belong to, where those of a few were listed in shared memory."""

    arena: Arena
    at: int
    listed: Expr

    def of(self, s: Expr) -> Expr:
        """The candidate of key number ``s``; in a row of all keys, that is ``s``."""
        found = local("candidate", 1, I32)
        put(found, s, 0)
        with when(self.listed):
            put(found, self.arena.i32[s + self.at], 0)
        return found[0]


@dataclass(frozen=True)
class RowKeys:
    """Each warp has a range of pages of its own; a thread has every 32nd of them, the first in registers.

    page         0 .. 31 | 32 .. 63 | ..     | begin .. + 31 | ..
    warp         0                           | 1                      ``share`` rounds of 32 pages each
    round        0       | 1        | ..     | 0             | 1
    in           near[0] | near[1]  | far    | near[0]       | ..     far: read where it lies, each time
    """

    cta: Cta
    keys: Held
    far: Opened
    """The same in the workspace."""
    scored: Expr
    share: Expr
    """Rounds of 32 pages that a warp has."""
    first: Expr
    """The first page of the lane."""
    near: Buffer
    """Keys in registers; 0 beyond the row's pages."""
    held: int
    """How many those are."""
    pages: Pages | None = None
    """The candidates of keys that were listed."""

    @classmethod
    def load(
        cls, cta: Cta, keys: Held, scored: Expr, held: int, pages: Pages | None = None, ctas: int = 1, rank: Expr = 0
    ) -> RowKeys:
        """Read the keys that a thread holds in registers, where the row is shared by so many ``ctas``, of which this
        has a ``rank``.
        """
        # in registers: TVM writes a bound value out wherever it is used
        share, first = local("share", 1, I32), local("first_of_lane", 1, I32)
        put(share, rounds_of(scored, WARP * cta.warps * ctas), 0)
        put(first, (rank * cta.warps + cta.warp) * share[0] * WARP + cta.lane, 0)
        made = cls(cta, keys, keys.opened(), scored, share[0], first[0], local("keys", held, U32), held, pages)
        for i in range(held):
            put(made.near, T.uint32(0), i)
        made.where_they_lie(made._read)
        return made

    def where_they_lie(self, read: Callable[[Callable[[Expr], Expr]], None]) -> None:
        """Call ``read`` with what reads the word of a page, for shared memory and for the workspace."""
        self.keys.where_it_lies(lambda: read(self.keys.near), lambda: read(self.far.get))

    def _read(self, get: Callable[[Expr], Expr]) -> None:
        # all loads are on their way before the first is looked at
        for i in range(self.held):
            with when(i32(i) < self.share):
                put(self.near, T.reinterpret(U32, get(T.min(self.page(i), self.scored - 1))), i)
        for i in range(self.held):
            put(self.near, T.Select(self.page(i) < self.scored, self.near[i], T.uint32(0)), i)

    @property
    def warps(self) -> Expr:
        """Warps that have pages."""
        return rounds_of(self.scored, self.share * WARP)

    def page(self, i: Expr) -> Expr:
        """The page of this lane in round ``i``."""
        return self.first + i * WARP

    def candidate(self, s: Expr) -> Expr:
        """The candidate that key number ``s`` belongs to."""
        return s if self.pages is None else self.pages.of(s)

    def each(self, body: Body) -> None:
        """Run ``body`` for each of this thread's pages, ascending; all lanes take part in every call."""
        each_of([self], lambda s, inside, keys: body(s, inside, keys[0]))


def each_of(rows: Sequence[RowKeys], body: Callable[[Expr, Expr, Sequence[Expr]], None]) -> None:
    """Run ``body`` for each of this thread's pages with its keys in all ``rows``, which are of the same pages."""
    row = rows[0]
    for i in range(row.held):
        with when(i32(i) < row.share):
            s = let("s", row.page(i))
            body(s, let("inside", s < row.scored), [r.near[i] for r in rows])
    batches = [local("far_keys", FAR, U32) for _ in rows]
    with loop("far_round", rounds_of(T.max(i32(0), row.share - row.held), FAR)) as turn:
        first = let("first_far", turn * FAR + row.held)
        # loads on their way together: one at a time, each would be waited for
        for r, batch in zip(rows, batches, strict=True):

            def read(get: Callable[[Expr], Expr], batch: Buffer = batch) -> None:
                for i in range(FAR):
                    put(batch, T.reinterpret(U32, get(T.min(row.page(first + i), row.scored - 1))), i)

            r.where_they_lie(read)
        for i in range(FAR):
            with when(first + i < row.share):
                s = let("s", row.page(first + i))
                inside = let("inside", s < row.scored)
                body(s, inside, [T.Select(inside, batch[i], T.uint32(0)) for batch in batches])
