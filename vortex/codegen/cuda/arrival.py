"""How CTAs that share a piece of work meet: each counts itself in, and the last one to arrive does what is left."""

from __future__ import annotations

from vortex.codegen.cuda.ptx import ptx, registers
from vortex.codegen.tir import I32, Buffer, Expr, equal, i32, put, when


def arrive(arrivals: Buffer, counter: Expr, expected: Expr, told: Buffer, at: int) -> None:
    """Count this CTA in at ``counter`` and leave in ``told[at]`` how many of the ``expected`` CTAs came before.

    One thread calls it, between two barriers of the CTA: the addition releases what the first barrier gathered from
    all threads, and acquires what the CTAs before released. The last to arrive leaves the counter at 0.
    """
    before = registers("before", 2, I32)
    ptx("atom.acq_rel.gpu.global.add.s32", before[0], arrivals.ptr_to([counter]), i32(1))
    put(told, before[0], at)
    with when(equal(before[0], expected - 1)):
        put(arrivals, i32(0), counter)
