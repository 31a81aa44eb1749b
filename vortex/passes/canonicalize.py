"""Everything that can be said more simply, without changing a bit of any result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vortex.errors import VortexError
from vortex.ir.core import Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.rewrite import Rewriter, set_operands
from vortex.ir.types import DType, TensorType, bf16, bool_, f16, f32, fp8_e4m3, i32, i64, int4, int8, uint1
from vortex.passes.manager import Pass, PassContext, register

HOLDS: dict[DType, tuple[DType, ...]] = {
    bool_: (i32, i64, f32, f16, bf16), fp8_e4m3: (f16, bf16, f32), f16: (f32,), bf16: (f32,), i32: (i64,), i64: (i32,),
    int8: (i32, i64, f32, f16, bf16), int4: (i32, i64, f32, f16, bf16), uint1: (bool_, i32, i64, f32, f16, bf16),
}  # fmt: skip
"""Types that hold every number of a type, so that casting there loses nothing (i64 is computed as i32)."""


@register("canonicalize", stage="any", tag="exact", version=1)
@dataclass(frozen=True, slots=True)
class Canonicalize(Pass):
    """Fold constants, drop what does nothing, join what belongs together.

    Numbers, signed zeros and NaNs stay as they are: x * 1 goes, x + 0 does not (-0 + 0 is 0).

        %one = flow.constant() {number = 1.0}
        %a = flow.mul(%x, %one)
        %t = flow.transpose(%a) {perm = [1, 0]}
        %u = flow.transpose(%t) {perm = [1, 0]}
        %y = flow.neg(%u)
        %z = flow.pick(%y, %near)
          ->
        %x_1 = flow.pick(%x, %near)
        %z = flow.neg(%x_1)
    """

    def run(self, module: Module, ctx: PassContext) -> Module:
        for f in module.functions.values():
            Rewriter(f).to_fixpoint(_simplify)
        return module


def _simplify(rw: Rewriter, o: Op) -> Value | None:
    assert o.result is not None
    if o.widens:
        _drop_on_operands(o)
    rule = next((r for kind, r in RULES.items() if isinstance(o, kind)), None)
    new = _fold(rw, o) or (rule(rw, o) if rule else None)
    return None if new is None or new is o.result else new


def _type(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type


def _as(rw: Rewriter, x: Value, o: Op) -> Value:
    """``x`` in the place of ``o``'s result, whose numbers it has: cast and broadcast to its type."""
    out = _type(o.value)
    if _type(x).dtype != out.dtype:
        x = rw.add(flow.Cast(x, out.dtype), o.value.name)
    if x.type != out:
        x = rw.add(flow.Broadcast(x, out.shape), o.value.name)
    return x


# what an op need not be given -----------------------------------------------------------------------


def _drop_on_operands(o: Op) -> None:
    """Skip widening casts and, in front of elementwise ops, broadcasts."""
    for i, v in enumerate(o.operands):
        owner = v.owner
        widening = isinstance(owner, flow.Cast) and owner.to == f32 and _type(owner.x).dtype.is_float
        spread = isinstance(owner, flow.Broadcast) and o.role == "elementwise"
        if isinstance(owner, flow.Cast | flow.Broadcast) and (widening or spread):
            fewer = [*o.operands[:i], owner.x, *o.operands[i + 1 :]]
            if _same_type(o, fewer):
                set_operands(o, fewer)


def _same_type(o: Op, operands: list[Value]) -> bool:
    try:
        return o.with_operands(operands).value.type == o.value.type
    except VortexError:
        return False


# constants ------------------------------------------------------------------------------------------


def _number(v: Value) -> float | None:
    return v.owner.number if isinstance(v.owner, flow.Constant) else None


def _fold(rw: Rewriter, o: Op) -> Value | None:
    """An op on numbers only, computed now."""
    if o.role != "elementwise" or any(_number(v) is None for v in o.operands):
        return None
    with np.errstate(all="ignore"):
        result = o.evaluate(*(np.asarray(v.owner.evaluate()) for v in o.operands if v.owner is not None))
    number = float(result)
    t = _type(o.value)
    return rw.add(flow.Constant(number if t.dtype.is_float else int(number), t), o.value.name)


def _is(v: Value, number: float) -> bool:
    """Whether ``v`` is that constant, the sign of zero included."""
    n = _number(v)
    return n is not None and n == number and math.copysign(1, n) == math.copysign(1, number)


# rules ----------------------------------------------------------------------------------------------


def _mul(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Mul)
    for x, c in ((o.a, o.b), (o.b, o.a)):
        if _is(c, 1):
            return _as(rw, x, o)
    return None


def _div(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Div)
    return _as(rw, o.a, o) if _is(o.b, 1) else None


def _add(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Add)
    nothing = -0.0 if _type(o.value).dtype.is_float else 0.0
    for x, c in ((o.a, o.b), (o.b, o.a)):
        if _is(c, nothing):
            return _as(rw, x, o)
    return None


def _sub(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Sub)
    return _as(rw, o.a, o) if _is(o.b, 0.0) else None


def _neg(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Neg)
    inner = o.x.owner
    if isinstance(o, flow.Abs):
        return _abs(rw, o)
    return _as(rw, inner.x, o) if isinstance(inner, flow.Neg) and not isinstance(inner, flow.Abs) else None


def _abs(rw: Rewriter, o: flow.Abs) -> Value | None:
    inner = o.x.owner
    # every fp32 has its negative; the smallest int32 has none
    if isinstance(inner, flow.Neg) and _type(o.value).dtype.is_float:
        return rw.add(flow.Abs(inner.x), o.value.name)
    return None


def _not(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Not)
    return o.x.owner.x if isinstance(o.x.owner, flow.Not) else None


def _cast(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Cast)
    if _type(o.x).dtype == o.to:
        return o.x
    inner = o.x.owner
    if isinstance(inner, flow.Cast) and inner.to in HOLDS.get(_type(inner.x).dtype, ()):
        return _as(rw, inner.x, o)
    return None


def _where(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Where)
    chosen = _number(o.cond)
    if o.a is o.b or chosen is not None:
        branch = o.a if o.a is o.b or chosen else o.b
        spread = TensorType(_type(branch).dtype, _type(o.value).shape)
        # a row's value cannot be repeated over pages by a broadcast alone
        return _as(rw, branch, o) if spread.page_axis is None or _type(branch).page_axis is not None else None
    return None


def _reduce(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Reduce)
    shape = _type(o.x).shape
    # adding up one element is 0 + x, which differs for -0; picking the largest of one does not
    if not isinstance(o, flow.ReduceMax | flow.ReduceMin) or any(shape[a] != 1 for a in o.axes):
        return None
    x = o.x
    if _type(x).shape != _type(o.value).shape:
        x = rw.add(flow.Reshape(x, _type(o.value).shape), o.value.name)
    return _as(rw, x, o)


def _reshape(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Reshape)
    if o.x.type == o.value.type:
        return o.x
    inner = o.x.owner
    return rw.add(flow.Reshape(inner.x, o.shape), o.value.name) if isinstance(inner, flow.Reshape) else None


def _transpose(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Transpose)
    if list(o.perm) == sorted(o.perm):
        return o.x
    inner, shape = o.x.owner, _type(o.x).shape
    if isinstance(inner, flow.Transpose):
        return rw.add(flow.Transpose(inner.x, tuple(inner.perm[p] for p in o.perm)), o.value.name)
    moved = [p for p in o.perm if shape[p] != 1]
    if moved == sorted(moved):
        return rw.add(flow.Reshape(o.x, _type(o.value).shape), o.value.name)
    return None


def _broadcast(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Broadcast)
    if o.x.type == o.value.type:
        return o.x
    inner = o.x.owner
    if isinstance(inner, flow.Broadcast):
        return rw.add(flow.Broadcast(inner.x, o.shape), o.value.name)
    if _type(o.x).numel == _type(o.value).numel:
        return rw.add(flow.Reshape(o.x, o.shape), o.value.name)
    return None


def _slice(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Slice)
    if o.x.type == o.value.type and (o.size <= 1 or o.step == 1):
        return o.x
    inner = o.x.owner
    if isinstance(inner, flow.Slice) and inner.axis == o.axis and o.size:
        start = inner.start + o.start * inner.step
        return rw.add(flow.Slice(inner.x, o.axis, start, o.size, o.step * inner.step), o.value.name)
    return None


def _pick(rw: Rewriter, o: Op) -> Value | None:
    """What is computed of a page alone is computed at the pages of a shortlist alone, unless others want it anyway."""
    assert isinstance(o, flow.Pick)
    inner = o.x.owner
    # stored bits are packed as they lie, and of a block there is no list of pages to look it up in
    stays = isinstance(inner, flow.Shortlist | flow.PackBits | flow.BlocksOf)
    if inner is None or inner.role == "leaf" or stays or inner.crosses_pages():
        return None
    if isinstance(inner, flow.Pick):
        return rw.add(flow.Pick(inner.x, rw.add(flow.Pick(inner.at, o.at), o.at.name)), o.value.name)
    cheap = inner.role == "view" or isinstance(inner, flow.Cast)
    if not cheap and any(o.x in u.operands and not isinstance(u, flow.Pick) for u in rw.f.ops):
        return None
    listed, name = _type(o.at).shape[0], o.value.name
    parts = [rw.add(flow.Pick(v, o.at), v.name) if _type(v).page_axis is not None else v for v in inner.operands]
    if isinstance(inner, flow.Reshape | flow.Broadcast):
        shape = tuple(d if isinstance(d, int) else listed for d in inner.shape)
        return rw.add(type(inner)(parts[0], shape), name)
    return rw.add(inner.with_operands(parts), name)


def _pack_bits(rw: Rewriter, o: Op) -> Value | None:
    """Stored bits are packed as they are, and views of the other axes come after the packing."""
    assert isinstance(o, flow.PackBits)
    inner, last, words = o.x.owner, _type(o.x).shape[-1], _type(o.value).shape[-1]
    if isinstance(inner, flow.Cast) and _type(inner.x).dtype == uint1:
        return rw.add(flow.PackBits(inner.x), o.value.name)
    if not isinstance(inner, flow.View) or not _type(inner.x).shape or _type(inner.x).shape[-1] != last:
        return None
    packed = flow.PackBits(inner.x)
    if isinstance(inner, flow.Reshape | flow.Broadcast):
        return rw.add(type(inner)(rw.add(packed, o.value.name), (*inner.shape[:-1], words)), o.value.name)
    rank = len(_type(o.x).shape)
    kept = inner.perm[-1] if isinstance(inner, flow.Transpose) else inner.axis if isinstance(inner, flow.Slice) else -1
    if (isinstance(inner, flow.Transpose) and kept == rank - 1) or (isinstance(inner, flow.Slice) and kept != rank - 1):
        return rw.add(inner.with_operands([rw.add(packed, o.value.name)]), o.value.name)
    return None


def _concat(rw: Rewriter, o: Op) -> Value | None:
    assert isinstance(o, flow.Concat)
    return o.parts[0] if len(o.parts) == 1 else None


RULES: dict[type[Op], Callable[[Rewriter, Op], Value | None]] = {
    flow.Mul: _mul, flow.Div: _div, flow.Add: _add, flow.Sub: _sub, flow.Neg: _neg, flow.Not: _not,
    flow.Cast: _cast, flow.Where: _where, flow.Reduce: _reduce, flow.Reshape: _reshape,
    flow.Transpose: _transpose, flow.Broadcast: _broadcast, flow.Slice: _slice, flow.Concat: _concat,
    flow.Pick: _pick,
    flow.PackBits: _pack_bits,
}  # fmt: skip
