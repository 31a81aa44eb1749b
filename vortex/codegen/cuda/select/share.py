"""How many pages of a row reach a share of its mass, by one CTA: the last key among them, bit by bit.

Masses are whole numbers (:mod:`vortex.codegen.share`), so that it does not matter in which order threads add them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import cta_sync, shuffle_xor, warp_extreme
from vortex.codegen.cuda.select.row_keys import RowKeys
from vortex.codegen.cuda.storage import Arena
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.share import FIRST, exponent, needed, taken, trial_bit, whole
from vortex.codegen.tir import I32, I64, U32, Buffer, Expr, T, cast, equal, i32, let, local, loop, put, when
from vortex.ir.ranking import MASS_BITS

LOW = (1 << MASS_BITS) - 1
"""The bits of a sum that travel in the first of two words."""


@dataclass(frozen=True)
class Share:
    """Counts the pages that reach a share of a row's mass; holds the shared memory it takes."""

    cta: Cta
    arena: Arena
    sums: int
    """Two words for each warp."""

    @classmethod
    def reserve(cls, cta: Cta, arena: Arena) -> Share:
        """Take the shared memory."""
        return cls(cta, arena, arena.take(2 * cta.warps))

    def reaching(self, keys: RowKeys, share: int, *, again: bool) -> Expr:
        """How many of the best candidates have ``share`` (in 2^-24) of the mass of all; ``again`` where it is not the
        first such count of the kernel.
        """
        if again:
            cta_sync()  # the sums before are read by all
        top, last = local("top_exponent", 1, U32), local("last_key", 1, U32)
        put(top, T.uint32(1), 0)
        keys.each(lambda s, inside, key: put(top, T.max(top[0], exponent(key)), 0))
        put(top, self._largest(top[0]), 0)

        def mass(name: str, passes: Callable[[Expr], Expr] | None = None) -> Expr:
            """The mass of all candidates, or of those whose keys pass."""
            mine = local(name, 1, I64)
            put(mine, T.int64(0), 0)

            def add(s: Expr, inside: Expr, key: Expr) -> None:
                own = whole(key, top[0])
                put(mine, mine[0] + (own if passes is None else T.Select(passes(key), own, T.int64(0))), 0)

            keys.each(add)
            return self._sum(mine)

        need = needed(mass("mass"), share)
        put(last, T.uint32(FIRST), 0)
        with loop("bit", 31) as bit:
            trial = let("trial", T.bitwise_or(last[0], trial_bit(bit)))
            with when(mass("reached", lambda key: key >= trial) >= need):
                put(last, trial, 0)
        above = local("above", 1, I64)
        put(above, T.int64(0), 0)
        one, none = T.int64(1), T.int64(0)
        keys.each(lambda s, inside, key: put(above, above[0] + T.Select(key > last[0], one, none), 0))
        over = mass("mass_above", lambda key: key > last[0])
        count = let("pages_above", cast(I32, self._sum(above)))
        return let("reaching", taken(count, over, need, whole(last[0], top[0])))

    def _largest(self, mine: Expr) -> Expr:
        """The largest of all threads."""
        most = warp_extreme("max", mine)
        with when(equal(self.cta.lane, i32(0))):
            put(self.arena.u32, most, self.cta.warp + self.sums)
        cta_sync()
        found = local("largest", 1, U32)
        put(found, self.arena.u32[self.sums], 0)
        for w in range(1, self.cta.warps):
            put(found, T.max(found[0], self.arena.u32[self.sums + w]), 0)
        return found[0]

    def _sum(self, mine: Buffer) -> Expr:
        """The sum over all threads of a number below 2^62; ``mine`` then holds it."""
        for mask in (16, 8, 4, 2, 1):
            low, high = (let(n, x) for n, x in zip(("low", "high"), _words(mine[0]), strict=True))
            put(mine, mine[0] + _number(shuffle_xor(low, mask), shuffle_xor(high, mask)), 0)
        cta_sync()  # what lies there is read by all
        with when(equal(self.cta.lane, i32(0))):
            for i, x in enumerate(_words(mine[0])):
                put(self.arena.i32, x, 2 * self.cta.warp + (self.sums + i))
        cta_sync()
        put(mine, T.int64(0), 0)
        for w in range(self.cta.warps):
            at = self.sums + 2 * w
            put(mine, mine[0] + _number(self.arena.i32[at], self.arena.i32[at + 1]), 0)
        return let("sum_of_all", mine[0])


def _words(x: Expr) -> tuple[Expr, Expr]:
    """A number below 2^62 as two int32."""
    return cast(I32, T.bitwise_and(x, T.int64(LOW))), cast(I32, T.shift_right(x, T.int64(MASS_BITS)))


def _number(low: Expr, high: Expr) -> Expr:
    """The number of two words."""
    return cast(I64, low) + T.shift_left(cast(I64, high), T.int64(MASS_BITS))
