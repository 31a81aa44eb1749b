"""The keys of a row, as the threads of a CTA go over them again and again in the choice of pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP
from vortex.codegen.cuda.storage import Held
from vortex.codegen.cuda.warp import Cta, rounds_of
from vortex.codegen.tir import U32, Buffer, Expr, T, choose, i32, let, local, loop, put, when

FAR = 4
"""Keys beyond those in registers that are read together."""

Body = Callable[[Expr, Expr, Expr], None]
"""Takes a page, whether there is one, and its key."""


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
    scored: Expr
    share: Expr
    """Rounds of 32 pages that a warp has."""
    begin: Expr
    """The first page of the warp."""
    near: Buffer
    """Keys in registers; 0 beyond the row's pages."""
    held: int
    """How many those are."""

    @classmethod
    def load(cls, cta: Cta, keys: Held, scored: Expr, held: int) -> RowKeys:
        """Read the keys that a thread holds in registers."""
        share = let("share", rounds_of(rounds_of(scored, WARP), cta.warps))
        begin = let("begin", cta.warp * share * WARP)
        made = cls(cta, keys, scored, share, begin, local("keys", held, U32), held)
        for i in range(held):
            put(made.near, T.uint32(0), i)
        if not keys.pitch:
            made._read(keys.far)
            return made
        with choose(keys.on_chip) as (then, other):
            with then():
                made._read(keys.near)
            with other():
                made._read(keys.far)
        return made

    def _read(self, get: Callable[[Expr], Expr]) -> None:
        # all loads are on their way before the first is looked at
        for i in range(self.held):
            with when(i32(i) < self.share):
                put(self.near, T.reinterpret(U32, get(T.min(self.page(i), self.scored - 1))), i)
        for i in range(self.held):
            put(self.near, T.Select(self.page(i) < self.scored, self.near[i], T.uint32(0)), i)

    def page(self, i: Expr) -> Expr:
        """The page of this lane in round ``i``."""
        return self.begin + i * WARP + self.cta.lane

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
            for i in range(FAR):
                put(batch, T.reinterpret(U32, r.keys.get(T.min(row.page(first + i), row.scored - 1))), i)
        for i in range(FAR):
            with when(first + i < row.share):
                s = let("s", row.page(first + i))
                inside = let("inside", s < row.scored)
                body(s, inside, [T.Select(inside, batch[i], T.uint32(0)) for batch in batches])
