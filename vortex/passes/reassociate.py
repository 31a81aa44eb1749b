"""Sums in another order, where that is less work."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vortex.ir.core import Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.rewrite import Rewriter
from vortex.ir.types import Dim, TensorType, f32
from vortex.passes.manager import Pass, PassContext, register


@register("reassociate", stage="flow", tag="real", version=2)
@dataclass(frozen=True, slots=True)
class Reassociate(Pass):
    """Move sums and factors through products, never to more work; sums over pages stay where they are.

    The mean over heads of dots is one dot with the sum of heads, a group-th of the work. The division comes
    last: sums of small integers stay exact, so pages that tied still tie.

        %d = flow.dot(%q, %c) {spec = "gd,sd->sg"}
        %s = flow.reduce_mean(%d) {axes = [1]}
          ->
        %s_a = flow.reduce_sum(%q) {axes = [0]}
        %s = flow.dot(%s_a, %c) {spec = "d,sd->s"}
        %s_1 = flow.div(%s, %s_count)

    A sum of products is a dot (``(q * c).sum(-1)``), and a factor that all terms of a sum share is
    applied to the sum.
    """

    def run(self, module: Module, ctx: PassContext) -> Module:
        for f in module.functions.values():
            Rewriter(f).to_fixpoint(_rewrite)
        return module


def _rewrite(rw: Rewriter, o: Op) -> Value | None:
    if isinstance(o, flow.ReduceSum | flow.ReduceMean) and _type(o.value).dtype == f32:
        inner = o.x.owner
        # a product that others use is computed anyway: summing it is less work than another product
        if not _static(o) or inner is None or rw.uses(o.x) > 1:
            return None
        if isinstance(inner, flow.Dot):
            return _sum_of_dot(rw, o, inner)
        if isinstance(inner, flow.Mul | flow.Div) and not isinstance(inner, flow.Pow):
            return _factor_of_sum(rw, o, inner) or _dot_of_products(rw, o, inner)
    if isinstance(o, flow.Dot):
        return _sum_before_dot(rw, o) or _factor_of_dot(rw, o)
    return None


def _type(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type


def _static(o: flow.Reduce) -> bool:
    """Whether the axes are of fixed, positive size, so that a mean moves like a sum."""
    sizes = [_type(o.x).shape[a] for a in o.axes]
    return bool(sizes) and all(isinstance(d, int) and d > 0 for d in sizes)


def _reshaped(rw: Rewriter, v: Value, shape: tuple[Dim, ...], name: str) -> Value:
    # what was reshaped for broadcasting goes back, so that the next rule sees what made it
    while _type(v).shape != shape and isinstance(v.owner, flow.Reshape):
        v = v.owner.x
    return v if _type(v).shape == shape else rw.add(flow.Reshape(v, shape), name)


# dots -------------------------------------------------------------------------------------------------


def _sum_of_dot(rw: Rewriter, o: flow.ReduceSum | flow.ReduceMean, dot: flow.Dot) -> Value | None:
    """sum_g <q_g, c_s> = <sum_g q_g, c_s>; a mean is divided afterwards."""
    la, lb, lo = dot.letters()
    gone = "".join(lo[a] for a in o.axes)
    if any((c in la) == (c in lb) for c in gone):
        return None
    name = o.value.name
    a, la = _summed(rw, dot.a, la, gone, f"{name}_a")
    b, lb = _summed(rw, dot.b, lb, gone, f"{name}_b")
    out = "".join(c for c in lo if c not in gone)
    new = rw.add(flow.Dot(a, b, f"{la},{lb}->{out}"), name)
    if isinstance(o, flow.ReduceMean):
        count = math.prod(d for i, d in enumerate(_type(o.x).shape) if i in o.axes and isinstance(d, int))
        new = rw.add(flow.Div(new, rw.add(flow.Constant(float(count), TensorType(f32)), f"{name}_count")), name)
    return _reshaped(rw, new, _type(o.value).shape, name)


def _summed(rw: Rewriter, v: Value, letters: str, gone: str, name: str) -> tuple[Value, str]:
    """The operand summed over the letters that go, and the letters that stay."""
    axes = tuple(i for i, c in enumerate(letters) if c in gone)
    if not axes:
        return v, letters
    return rw.add(flow.ReduceSum(v, axes), name), "".join(c for c in letters if c not in gone)


def _sum_before_dot(rw: Rewriter, o: flow.Dot) -> Value | None:
    """What only one operand has and nobody wants is summed first."""
    la, lb, lo = o.letters()
    name = o.value.name
    new: list[Value] = []
    kept: list[str] = []
    for v, mine, other in ((o.a, la, lb), (o.b, lb, la)):
        axes = tuple(i for i, c in enumerate(mine) if c not in other + lo and isinstance(_type(v).shape[i], int))
        x = v
        if axes:
            x = x if _type(x).dtype.is_float else rw.add(flow.Cast(x, f32), f"{name}_in")
            x = rw.add(flow.ReduceSum(x, axes), f"{name}_{'ab'[len(new)]}")
        new.append(x)
        kept.append("".join(c for i, c in enumerate(mine) if i not in axes))
    if kept == [la, lb]:
        return None
    return rw.add(flow.Dot(new[0], new[1], f"{kept[0]},{kept[1]}->{lo}"), name)


def _dot_of_products(rw: Rewriter, o: flow.ReduceSum | flow.ReduceMean, mul: Op) -> Value | None:
    """sum_d a_d * b_d as a dot, the axes of size 1 left out; a square stays one."""
    if not isinstance(mul, flow.Mul) or mul.a is mul.b:
        return None
    full = _type(mul.value).shape
    letters = {i: "abcdefghijklmnop"[i] if isinstance(d, int) else "s" for i, d in enumerate(full) if d != 1}
    sides = [_squeezed(v, len(full), letters) for v in (mul.a, mul.b)]
    summed = {letters[i] for i in o.axes if i in letters}
    shared = set(sides[0][1]) & set(sides[1][1]) & summed
    lo = "".join(letters[i] for i in sorted(letters) if i not in o.axes)
    if not shared or not set(lo) <= set("".join(s[1] for s in sides)):
        return None
    name = o.value.name
    a, b = (
        _reshaped(rw, v, shape, f"{name}_{side}")
        for v, (shape, _), side in zip((mul.a, mul.b), sides, "ab", strict=True)
    )
    out = rw.add(flow.Dot(a, b, f"{sides[0][1]},{sides[1][1]}->{lo}"), name)
    if isinstance(o, flow.ReduceMean):
        count = math.prod(d for i, d in enumerate(full) if i in o.axes and isinstance(d, int))
        scale = rw.add(flow.Constant(1 / count, TensorType(f32)), f"{name}_scale")
        out = rw.add(flow.Mul(out, scale), name)
    return _reshaped(rw, out, _type(o.value).shape, name)


def _squeezed(v: Value, rank: int, letters: dict[int, str]) -> tuple[tuple[Dim, ...], str]:
    """An operand's shape without its axes of size 1, and the letters of those that remain."""
    shape = _type(v).shape
    axes = [(i + rank - len(shape), d) for i, d in enumerate(shape) if d != 1]
    return tuple(d for _, d in axes), "".join(letters[i] for i, _ in axes)


# factors ----------------------------------------------------------------------------------------------


def _factor_of_sum(rw: Rewriter, o: flow.ReduceSum | flow.ReduceMean, product: Op) -> Value | None:
    """sum_i x_i * f = f * sum_i x_i, where f is the same for all i; likewise for x / f."""
    assert isinstance(product, flow.Mul | flow.Div)
    rank = len(_type(product.value).shape)
    for x, factor in _sides(product):
        shape = (1,) * (rank - len(_type(factor).shape)) + _type(factor).shape
        same = all(shape[a] == 1 for a in o.axes) and _type(x).dtype.is_float
        if not same or _type(x).shape != _type(product.value).shape:
            continue
        name = o.value.name
        total = rw.add(type(o)(x, o.axes, o.keepdims), f"{name}_of")
        kept = shape if o.keepdims else tuple(d for i, d in enumerate(shape) if i not in o.axes)
        while kept and kept[0] == 1 and len(_type(factor).shape) < len(kept):
            kept = kept[1:]
        factor = _reshaped(rw, factor, kept, f"{name}_by")
        return rw.add(type(product)(total, factor), name)
    return None


def _factor_of_dot(rw: Rewriter, o: flow.Dot) -> Value | None:
    """<x * f, y> = <x, y> * f, where f has no summed axis and the result is smaller than x."""
    la, lb, lo = o.letters()
    for v, letters, first in ((o.a, la, True), (o.b, lb, False)):
        product = v.owner
        if not isinstance(product, flow.Mul | flow.Div) or isinstance(product, flow.Pow) or rw.uses(v) > 1:
            continue
        for x, factor in _sides(product):
            spread = _spread(factor, letters, lo)
            if spread is None or _type(x).shape != _type(v).shape or not _smaller(o.value, v):
                continue
            name = o.value.name
            dot = rw.add(flow.Dot(x if first else o.a, o.b if first else x, o.spec), f"{name}_of")
            by = _reshaped(rw, _ordered(rw, factor, letters, lo), spread, f"{name}_by")
            return rw.add(type(product)(dot, by), name)
    return None


def _sides(product: flow.Mul | flow.Div) -> list[tuple[Value, Value]]:
    """What may be the term and what the factor."""
    both = [(product.a, product.b), (product.b, product.a)]
    return both if isinstance(product, flow.Mul) else both[:1]


def _spread(factor: Value, letters: str, lo: str) -> tuple[Dim, ...] | None:
    """The shape in which the factor of an operand broadcasts over the result, or None if it has a summed axis."""
    shape = _type(factor).shape
    mine = dict(zip(letters[len(letters) - len(shape) :], shape, strict=True))
    if any(d != 1 and c not in lo for c, d in mine.items()):
        return None
    out = tuple(mine.get(c, 1) for c in lo)
    return out if any(d != 1 for d in out) else ()


def _ordered(rw: Rewriter, factor: Value, letters: str, lo: str) -> Value:
    """The factor with its axes in the order in which the result has them."""
    mine = letters[len(letters) - len(_type(factor).shape) :]
    order = sorted(range(len(mine)), key=lambda i: lo.find(mine[i]))
    if order == sorted(order):
        return factor
    return rw.add(flow.Transpose(factor, tuple(order)), factor.name)


def _smaller(a: Value, b: Value) -> bool:
    """Whether ``a`` has fewer numbers than ``b``, however many pages there are."""
    x, y = _type(a), _type(b)
    return (x.page_axis is None or y.page_axis is not None) and x.numel < y.numel
