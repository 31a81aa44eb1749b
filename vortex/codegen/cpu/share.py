"""How many pages of a row reach a share of its mass, on a CPU: the last key among them, bit by bit."""

from __future__ import annotations

from collections.abc import Callable

from vortex.codegen.share import FIRST, exponent, needed, taken, trial_bit, whole
from vortex.codegen.tir import I32, I64, Expr, T, cast, let, local, loop, put, when


def emit_reaching(key: Callable[[Expr], Expr], scored: Expr, share: int) -> Expr:
    """How many of the best candidates have ``share`` (in 2^-24) of the mass of all; ``key`` gives that of each."""
    top = local("top_exponent", 1, "uint32")
    put(top, T.uint32(1), 0)
    with loop("s", scored) as s:
        put(top, T.max(top[0], exponent(key(s))), 0)

    def mass(name: str, of: Callable[[Expr], Expr] | None = None) -> Expr:
        """The mass of all candidates, or of those whose keys pass."""
        total = local(name, 1, I64)
        put(total, T.int64(0), 0)
        with loop("s", scored) as s:
            mine = let("mine", key(s))
            own = whole(mine, top[0])
            put(total, total[0] + (own if of is None else T.Select(of(mine), own, T.int64(0))), 0)
        return let(name, total[0])

    need = needed(mass("mass"), share)
    last = local("last_key", 1, "uint32")
    put(last, T.uint32(FIRST), 0)
    with loop("bit", 31) as bit:
        trial = let("trial", T.bitwise_or(last[0], trial_bit(bit)))
        with when(mass("reached", lambda k: k >= trial) >= need):
            put(last, trial, 0)
    above = local("above", 1, I32)
    put(above, T.int32(0), 0)
    with loop("s", scored) as s:
        put(above, above[0] + cast(I32, T.Select(key(s) > last[0], T.int32(1), T.int32(0))), 0)
    over = mass("mass_above", lambda k: k > last[0])
    return let("reaching", taken(above[0], over, need, whole(last[0], top[0])))
