"""Softmax as the folds it consists of."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.ir.core import Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.rewrite import Rewriter
from vortex.ir.types import TensorType, f32
from vortex.passes.manager import Pass, PassContext, register


@register("expand-softmax", stage="any", tag="exact", version=1)
@dataclass(frozen=True, slots=True)
class ExpandSoftmax(Pass):
    """Spell out softmax, so that over pages its two folds and its quotient can share passes with others.

    %p = flow.softmax(%x) {axis = 0}
      ->
    %p_max = flow.reduce_max(%x) {axes = [0], keepdims = true}
    %p_shifted = flow.sub(%x, %p_max)
    %p_exp = flow.exp(%p_shifted)
    %p_sum = flow.reduce_sum(%p_exp) {axes = [0], keepdims = true}
    %p = flow.div(%p_exp, %p_sum)
    """

    def run(self, module: Module, ctx: PassContext) -> Module:
        for f in module.functions.values():
            Rewriter(f).sweep(_expand)
        return module


def _expand(rw: Rewriter, o: Op) -> Value | None:
    if not isinstance(o, flow.Softmax):
        return None
    name, x = o.value.name, o.x
    assert isinstance(x.type, TensorType)
    rw.f.group([o], "softmax")
    if not x.type.dtype.is_float:
        x = rw.add(flow.Cast(x, f32), f"{name}_in")
    top = rw.add(flow.ReduceMax(x, (o.axis,), True), f"{name}_max")
    shifted = rw.add(flow.Sub(x, top), f"{name}_shifted")
    e = rw.add(flow.Exp(shifted), f"{name}_exp")
    total = rw.add(flow.ReduceSum(e, (o.axis,), True), f"{name}_sum")
    return rw.add(flow.Div(e, total), name)
