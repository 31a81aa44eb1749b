"""A ranking does not change under a strictly increasing map of the scores."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.ir.core import Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.rewrite import Rewriter, set_operands
from vortex.ir.types import TensorType, f32
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
    while (inner := _peel(v, scalar=scalar)) is not None:
        found = v = inner
    deeper = _through(rw, v)
    return deeper if deeper is not None else found


def _peel(v: Value, *, scalar: bool) -> Value | None:
    """The argument of the increasing map that makes ``v``, if one does."""
    o = v.owner
    x: Value | None = None
    if o is not None and (o.increasing or (isinstance(o, flow.Cast) and o.to == f32)):
        x = o.operands[0] if _type(o.operands[0]).dtype.is_float else None
    elif isinstance(o, flow.Softmax) and o.axis == _type(v).page_axis and not scalar:
        x = o.x
    elif isinstance(o, flow.Add):
        x = next((a for a, c in ((o.a, o.b), (o.b, o.a)) if _per_row(c, scalar=scalar)), None)
    elif isinstance(o, flow.Sub):
        x = o.a if _per_row(o.b, scalar=scalar) else None
    elif isinstance(o, flow.Mul):
        pairs = ((o.a, o.b), (o.b, o.a))
        x = next((a for a, c in pairs if _per_row(c, scalar=scalar) and _positive(c)), None)
    elif type(o) is flow.Div:  # pow is one, too
        x = o.a if _per_row(o.b, scalar=scalar) and _positive(o.b) else None
    if x is None or not _type(v).dtype.is_float:  # integers wrap
        return None
    if _type(x).shape != _type(v).shape or _type(x).page_axis is None:
        return None
    return x


def _through(rw: Rewriter, v: Value) -> Value | None:
    """The same for a map under a reshape of one number per page, or under a largest or smallest."""
    o = v.owner
    if isinstance(o, flow.Reshape) and _type(v).numel == 1:
        inner = _argument(rw, o.x, scalar=False)
        return rw.add(flow.Reshape(inner, o.shape), v.name) if inner is not None else None
    if isinstance(o, flow.ReduceMax | flow.ReduceMin) and not o.crosses_pages():
        inner = _argument(rw, o.x, scalar=True)
        if inner is not None and _type(inner).dtype.is_float:
            return rw.add(type(o)(inner, o.axes, o.keepdims), v.name)
    return None


def _type(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type


def _per_row(c: Value, *, scalar: bool) -> bool:
    """Whether ``c`` is the same for all pages of a row; with ``scalar``, for all their numbers too."""
    t = _type(c)
    return t.page_axis is None and (not scalar or t.numel == 1)


def _positive(v: Value) -> bool:
    """Whether ``v`` is above zero and finite for every finite input, over the reals."""
    o = v.owner
    if isinstance(o, flow.Constant):
        return 0 < float(o.evaluate()) < float("inf")
    if o is None or o.positive == "never":
        return False
    return o.positive == "always" or all(_type(x).numel > 0 and _positive(x) for x in o.operands)
