"""Powers of e on a GPU that are one instruction, where nothing is lost by it."""

from __future__ import annotations

from vortex.codegen.cuda.ptx import LOG2E, exp2
from vortex.codegen.tir import Expr, f32, local
from vortex.ir.core import Op
from vortex.ir.dialects import flow
from vortex.ir.staging import origin_of


def below_largest(o: Op) -> bool:
    """Whether ``o`` is a power of a difference from the largest of the numbers that are taken the power of, within a
    page: as in logsumexp and softmax, where those that are far below it are added to the largest, which is 1.
    """
    if not isinstance(o, flow.Exp) or not isinstance(less := o.x.owner, flow.Sub):
        return False
    top = origin_of(less.b).owner
    if isinstance(top, flow.Where):
        # an infinite one is replaced
        top = origin_of(top.b).owner
    return isinstance(top, flow.ReduceMax) and not top.crosses_pages() and origin_of(top.x) is origin_of(less.a)


def quick_power(x: Expr) -> Expr:
    """e ** x with a relative error of 2^-22 and 2^-24 of ``x``. Emits a statement."""
    out = local("power", 2)
    exp2(out, 0, x * f32(LOG2E))
    return out[0]
