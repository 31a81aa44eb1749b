"""The sum of softmax over the pages in the pass over the pages that finds their largest."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.ir.core import Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.rewrite import Rewriter, drop_dead
from vortex.ir.types import TensorType, f32
from vortex.passes.manager import Pass, PassContext, register

MOST = 32
"""Numbers of a page whose sums a warp makes beside each other."""


@register("softmax-sums", stage="page", tag="exact", version=1)
@dataclass(frozen=True, slots=True)
class SoftmaxSums(Pass):
    """On a GPU, let what softmax over the pages divides by not wait for the largest of all pages: one pass less over
    what is kept of each page, and fewer numbers of it.

        %p_max = flow.reduce_max(%x) {axes = [0], keepdims = true}
        %p_shifted = flow.sub(%x, %p_max)
        %p_exp = flow.exp(%p_shifted)
        %p_sum = flow.reduce_sum(%p_exp) {axes = [0], keepdims = true}
      ->
        ..
        %p_sum = flow.softmax_sum(%x)

    On a CPU, where powers take longer than what is kept, nothing changes.
    """

    def run(self, module: Module, ctx: PassContext) -> Module:
        if ctx.target is not None and ctx.target.kind == "cuda":
            for f in module.functions.values():
                Rewriter(f).sweep(_at_once)
                drop_dead(f)
        return module


def _at_once(rw: Rewriter, o: Op) -> Value | None:
    if not isinstance(o, flow.ReduceSum) or not o.keepdims or not isinstance(e := o.x.owner, flow.Exp):
        return None
    if not isinstance(less := e.x.owner, flow.Sub) or not isinstance(top := less.b.owner, flow.ReduceMax):
        return None
    x = less.a
    assert isinstance(x.type, TensorType)
    same = top.x is x and top.keepdims and top.axes == o.axes == (x.type.page_axis,)
    few = x.type.numel <= MOST
    return rw.add(flow.SoftmaxSum(x), o.value.name) if same and few and x.type.dtype == f32 else None
