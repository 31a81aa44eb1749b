"""A bound over a box of keys is two dots."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.ir.core import Function, Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.rewrite import Rewriter
from vortex.ir.staging import origin_of
from vortex.ir.types import TensorType, f32
from vortex.passes.manager import Pass, PassContext, register


@register("split-bound", stage="flow", tag="real", version=1)
@dataclass(frozen=True, slots=True)
class SplitBound(Pass):
    """Where ``lo <= hi`` for sure, the larger of ``q * lo`` and ``q * hi`` is known from the sign of ``q`` alone.

    For sure means: ``@cache`` makes them as the least and the greatest of the same numbers, and both are stored
    in the same type. The products then sum up as two dots, which tensor cores do; the smaller likewise.

        %a = flow.mul(%q, %lo)
        %b = flow.mul(%q, %hi)
        %m = flow.maximum(%a, %b)
        %s = flow.reduce_sum(%m) {axes = [1]}
          ->
        %s_up = flow.maximum(%q, 0)
        %s_down = flow.minimum(%q, 0)
        %s_hi = flow.mul(%s_up, %hi)
        %s_lo = flow.mul(%s_down, %lo)
        %s_a = flow.reduce_sum(%s_hi) {axes = [1]}
        %s_b = flow.reduce_sum(%s_lo) {axes = [1]}
        %s = flow.add(%s_a, %s_b)
    """

    def run(self, module: Module, ctx: PassContext) -> Module:
        index = module.functions.get("index")
        if index is not None:
            boxes = _boxes(module, index)
            if boxes:
                Rewriter(index).sweep(lambda rw, o: _split(rw, o, boxes))
        return module


def _boxes(module: Module, index: Function) -> set[tuple[Value, Value]]:
    """Pairs of fields, as arguments of ``@index``, of which the first is nowhere above the second."""
    cache = module.functions.get("cache")
    if cache is None:
        return set()
    done = next((o for o in cache.ops if isinstance(o, flow.Return)), None)
    if done is None:
        return set()
    made = dict(zip(done.names, done.operands, strict=False))  # functions without names make no fields
    fields = {a.name: a for a in index.args}
    return {
        (fields[low], fields[high])
        for low, x in made.items()
        for high, y in made.items()
        if low in fields and high in fields and fields[low].type == fields[high].type and _ordered(x, y)
    }


def _ordered(low: Value, high: Value) -> bool:
    """Whether the two are the least and the largest of the same numbers, seen alike."""
    while isinstance(low.owner, flow.View) and isinstance(high.owner, flow.View):
        if type(low.owner) is not type(high.owner) or low.owner.attrs != high.owner.attrs:
            return False
        low, high = low.owner.x, high.owner.x
    a, b = low.owner, high.owner
    if not isinstance(a, flow.ReduceMin) or not isinstance(b, flow.ReduceMax) or a.axes != b.axes:
        return False
    return origin_of(a.x) is origin_of(b.x) and _alike(a.x, b.x)


def _split(rw: Rewriter, o: Op, boxes: set[tuple[Value, Value]]) -> Value | None:
    if not isinstance(o, flow.ReduceSum) or o.crosses_pages():
        return None
    extreme = o.x.owner
    if not isinstance(extreme, flow.Maximum | flow.Minimum) or rw.uses(o.x) > 1:
        return None
    found = _box(extreme.a, extreme.b, boxes) or _box(extreme.b, extreme.a, boxes)
    if found is None:
        return None
    q, low, high = found
    name = o.value.name
    zero = rw.add(flow.Constant(0.0, TensorType(f32)), f"{name}_zero")
    up, down = rw.add(flow.Maximum(q, zero), f"{name}_up"), rw.add(flow.Minimum(q, zero), f"{name}_down")
    if isinstance(extreme, flow.Minimum):
        low, high = high, low
    sums = [
        rw.add(flow.ReduceSum(rw.add(flow.Mul(part, side), f"{name}_{which}"), o.axes, o.keepdims), f"{name}_{end}")
        for part, side, which, end in ((up, high, "hi", "a"), (down, low, "lo", "b"))
    ]
    return rw.add(flow.Add(*sums), name)


def _box(a: Value, b: Value, boxes: set[tuple[Value, Value]]) -> tuple[Value, Value, Value] | None:
    """``q``, ``lo`` and ``hi`` as they are multiplied in ``a = q * lo`` and ``b = q * hi``."""
    x, y = a.owner, b.owner
    if not isinstance(x, flow.Mul) or not isinstance(y, flow.Mul):
        return None
    for q, low in ((x.a, x.b), (x.b, x.a)):
        for other, high in ((y.a, y.b), (y.b, y.a)):
            if q is other and (origin_of(low), origin_of(high)) in boxes and _alike(low, high):
                return q, low, high
    return None


def _alike(a: Value, b: Value) -> bool:
    """Whether two values are the same views of what they come from."""
    while isinstance(a.owner, flow.View):
        if type(a.owner) is not type(b.owner) or a.owner.attrs != b.owner.attrs:
            return False
        assert b.owner is not None
        if a.owner.operands[1:] != b.owner.operands[1:]:
            return False
        a, b = a.owner.x, b.owner.x
    return not isinstance(b.owner, flow.View)
