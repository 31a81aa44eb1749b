"""A ranking does not change under a strictly increasing map of the scores."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.ir.core import Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.increasing import peel, type_of
from vortex.ir.rewrite import Rewriter, set_operands
from vortex.passes.manager import Pass, PassContext, register


@register("drop-monotone", stage="flow", tag="real", version=1)
@dataclass(frozen=True, slots=True)
class DropMonotone(Pass):
    """Rank pages by the argument of a strictly increasing map of a row, not by its value.

    Such maps are: adding a number of the row, scaling by a positive constant or a row's positive number,
    exp, sigmoid, tanh, a softmax over the pages, and a cast to fp32. Over the reals the ranking is the
    same; in fp32 the map may round two scores to a tie, overflow, or turn a row of finite scores into
    NaN (an infinite or NaN shift), and then the ranking of the argument is the finer one.

        %m = flow.reduce_mean(%s) {axes = [0]}
        %centered = flow.sub(%s, %m)
        %p = flow.topk(%centered)
          ->
        %m = flow.reduce_mean(%s) {axes = [0]}
        %p = flow.topk(%s)
    """

    def run(self, module: Module, ctx: PassContext) -> Module:
        for f in module.functions.values():
            Rewriter(f).sweep(_rank)
        return module


def _rank(rw: Rewriter, o: Op) -> Value | None:
    if not isinstance(o, flow.Ranking) or not o.only_ranks:
        return None
    new = _argument(rw, o.scored, scalar=False)
    if new is not None:
        set_operands(o, [new if v is o.scored else v for v in o.operands])
    return None


def _argument(rw: Rewriter, v: Value, *, scalar: bool) -> Value | None:
    """A value of ``v``'s shape that ranks pages as ``v`` does, or None when there is none but ``v``.

    With ``scalar``, only maps count that are the same for every number of a page.
    """
    found: Value | None = None
    while (inner := peel(v, scalar=scalar)) is not None:
        found = v = inner
    deeper = _through(rw, v)
    return deeper if deeper is not None else found


def _through(rw: Rewriter, v: Value) -> Value | None:
    """The same for a map under a reshape of one number per page, or under a largest or smallest."""
    o = v.owner
    if isinstance(o, flow.Reshape) and type_of(v).numel == 1:
        inner = _argument(rw, o.x, scalar=False)
        return rw.add(flow.Reshape(inner, o.shape), v.name) if inner is not None else None
    if isinstance(o, flow.ReduceMax | flow.ReduceMin) and not o.crosses_pages():
        inner = _argument(rw, o.x, scalar=True)
        if inner is not None and type_of(inner).dtype.is_float:
            return rw.add(type(o)(inner, o.axes, o.keepdims), v.name)
    return None
