"""Maps of scores that keep the order of pages: strictly increasing, over the reals, and the same for all pages."""

from __future__ import annotations

from vortex.ir.core import Value
from vortex.ir.dialects import flow
from vortex.ir.types import TensorType, f32


def peel(v: Value, *, scalar: bool) -> Value | None:
    """The argument of the increasing map that makes ``v``, if one does.

    With ``scalar``, only maps count that are the same for every number of a page.
    """
    o = v.owner
    x: Value | None = None
    if o is not None and (o.increasing or (isinstance(o, flow.Cast) and o.to == f32)):
        x = o.operands[0] if type_of(o.operands[0]).dtype.is_float else None
    elif isinstance(o, flow.Softmax) and o.axis == type_of(v).page_axis and not scalar:
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
    if x is None or not type_of(v).dtype.is_float:  # integers wrap
        return None
    if type_of(x).shape != type_of(v).shape or type_of(x).page_axis is None:
        return None
    return x


def type_of(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type


def _per_row(c: Value, *, scalar: bool) -> bool:
    """Whether ``c`` is the same for all pages of a row; with ``scalar``, for all their numbers too."""
    t = type_of(c)
    return t.page_axis is None and (not scalar or t.numel == 1)


def _positive(v: Value) -> bool:
    """Whether ``v`` is above zero and finite for every finite input, over the reals."""
    o = v.owner
    if isinstance(o, flow.Constant):
        return 0 < float(o.evaluate()) < float("inf")
    if o is None or o.positive == "never":
        return False
    return o.positive == "always" or all(type_of(x).numel > 0 and _positive(x) for x in o.operands)
