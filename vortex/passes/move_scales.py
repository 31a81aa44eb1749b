"""Scales of codes go to where they cost least."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vortex.ir.core import Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.rewrite import Rewriter
from vortex.ir.types import MOST_CODE, Dim, TensorType, f32
from vortex.passes.manager import Pass, PassContext, register

PAGES = 1024
"""What the page axis counts as, where multiplications are counted."""
MOST_SUMS = 256
"""Sums over groups that a page may have at once: they are kept on chip until all are added up."""


@register("move-scales", stage="flow", tag="real", version=1)
@dataclass(frozen=True, slots=True)
class MoveScales(Pass):
    """Let contractions and sums see codes (int8, int4): their scales multiply what there is less of.

    A scale for each token, or each page, multiplies the result:

        %x = flow.mul(%codes, %scale)                    codes: int4[S, 16, 128], scale: f16[S, 16, 1]
        %y = flow.dot(%x, %q) {spec = "std,gd->sgt"}     q: bf16[4, 128]
          ->
        %y_of = flow.dot(%codes, %q) {spec = "std,gd->sgt"}
        %y_by = flow.reshape(%scale) {shape = [S, 1, 16]}
        %y = flow.mul(%y_of, %y_by)                      64 multiplications a page instead of 2048

    A scale for each channel multiplies the other operand, where that is less than the codes:

        %x = flow.mul(%codes, %scale)                    scale: f16[S, 1, 128]
        %y = flow.dot(%x, %q) {spec = "std,gd->sgt"}
          ->
        %y_by = flow.mul(%q, %scale_1)                   scale_1: f16[S, 1, 128], 512 instead of 2048
        %y = flow.dot(%codes, %y_by) {spec = "std,sgd->sgt"}

    A scale for each group of channels multiplies the sums over its group, in a second contraction. Views of a product
    become products of views.
    """

    def run(self, module: Module, ctx: PassContext) -> Module:
        for f in module.functions.values():
            Rewriter(f).to_fixpoint(_rewrite)
        return module


def _rewrite(rw: Rewriter, o: Op) -> Value | None:
    if isinstance(o, flow.View):
        return _view(rw, o)
    if isinstance(o, flow.ReduceSum | flow.ReduceMean):
        return _sum(rw, o)
    return _contraction(rw, o) if isinstance(o, flow.Dot) else None


def _type(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type


def _codes(v: Value) -> bool:
    """Whether a value is codes, seen through views and casts."""
    while isinstance(v.owner, flow.View | flow.Cast) and _type(v).dtype not in MOST_CODE:
        v = v.owner.x
    return _type(v).dtype in MOST_CODE


def _scaled(v: Value) -> tuple[Value, Value] | None:
    """Codes of the shape of ``v`` and their scale of the same rank, where ``v`` is their product."""
    product = v.owner
    if not isinstance(product, flow.Mul):
        return None
    for codes, scale in ((product.a, product.b), (product.b, product.a)):
        same = _type(codes).shape == _type(v).shape and len(_type(scale).shape) == len(_type(v).shape)
        if _codes(codes) and same:
            return codes, scale
    return None


# views ------------------------------------------------------------------------------------------------


def _view(rw: Rewriter, o: flow.View) -> Value | None:
    found = _scaled(o.x)
    if found is None:
        return None
    codes, scale = found
    name = o.value.name
    moved = _view_of_scale(o, _type(codes).shape, scale)
    if moved is None:
        return None
    seen = rw.add(o.with_operands([codes]), f"{name}_codes")
    return rw.add(flow.Mul(seen, rw.add(moved, f"{name}_scale")), name)


def _view_of_scale(o: flow.View, full: tuple[Dim, ...], scale: Value) -> Op | None:
    """The view that shows a scale as ``o`` shows its codes; None where there is none."""
    shape = _type(scale).shape
    if isinstance(o, flow.Transpose):
        return flow.Transpose(scale, o.perm)
    if isinstance(o, flow.Slice):
        whole = shape[o.axis] == 1
        return flow.Slice(scale, o.axis, 0, 1, 1) if whole else flow.Slice(scale, o.axis, o.start, o.size, o.step)
    if not isinstance(o, flow.Reshape):
        return None
    made: list[Dim] = []
    for source, target in _groups(full, o.shape):
        mine = [shape[a] for a in source if full[a] != 1]
        if all(d == 1 for d in mine):
            made += [1] * len(target)
        elif mine == [full[a] for a in source if full[a] != 1]:
            made += [o.shape[a] for a in target]
        else:
            return None
    return flow.Reshape(scale, tuple(made))


def _groups(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """The axes of two shapes of one value in the smallest runs of equal size; the page axis is a run of its own."""
    i = j = 0
    while i < len(before) or j < len(after):
        source: list[int] = []
        target: list[int] = []
        have = want = 1
        while not (source or target) or have != want:
            if i < len(before) and (have <= want or j >= len(after)) and not (have == want and source):
                source.append(i)
                have = -1 if not isinstance(d := before[i], int) else have * d
                i += 1
            else:
                target.append(j)
                want = -1 if not isinstance(d := after[j], int) else want * d
                j += 1
        yield source, target


# sums -------------------------------------------------------------------------------------------------


def _sum(rw: Rewriter, o: flow.ReduceSum | flow.ReduceMean) -> Value | None:
    """sum_i c_i * s = s * sum_i c_i, where s is the same for all i."""
    found = _scaled(o.x)
    if found is None or o.crosses_pages():
        return None
    codes, scale = found
    if any(_type(scale).shape[a] != 1 for a in o.axes):
        return None
    name = o.value.name
    total = rw.add(type(o)(rw.add(flow.Cast(codes, f32), f"{name}_in"), o.axes, o.keepdims), f"{name}_of")
    if not o.keepdims:
        kept = tuple(d for a, d in enumerate(_type(scale).shape) if a not in o.axes)
        scale = rw.add(flow.Reshape(scale, kept), f"{name}_by")
    return rw.add(flow.Mul(total, scale), name)


# contractions -----------------------------------------------------------------------------------------


def _contraction(rw: Rewriter, o: flow.Dot) -> Value | None:
    la, lb, lo = o.letters()
    sizes = dict(zip(la + lb, _type(o.a).shape + _type(o.b).shape, strict=True))
    for first in (True, False):
        (x, mine), (y, theirs) = ((o.a, la), (o.b, lb)) if first else ((o.b, lb), (o.a, la))
        found = _scaled(x)
        if found is None:
            continue
        codes, scale = found
        of_scale = [c for c, d in zip(mine, _type(scale).shape, strict=True) if d != 1]
        sums = lo + "".join(c for c in of_scale if c not in lo)
        operand = "".join(c for c in of_scale if c not in theirs) + theirs
        kept, after, before = (_count(letters, sizes) for letters in (mine, sums, operand))
        if sums != lo and after > MOST_SUMS * PAGES:
            after = kept
        if min(after, before) >= kept:
            continue
        name = o.value.name
        if after <= before:
            # the scale multiplies the sums over what it is the same for
            of = rw.add(_dot(o, codes, y, f"{mine},{theirs}->{sums}", first), f"{name}_of")
            if sums == lo:
                return rw.add(flow.Mul(of, _arranged(rw, scale, mine, lo, f"{name}_by")), name)
            letters = "".join(c for c in sums if c in of_scale)
            by = _arranged(rw, scale, mine, letters, f"{name}_by")
            return rw.add(flow.Dot(of, by, f"{sums},{letters}->{lo}"), name)
        # the scale multiplies the other operand
        by = _arranged(rw, scale, mine, operand, f"{name}_scale")
        scaled = rw.add(flow.Mul(_arranged(rw, y, theirs, operand, f"{name}_other"), by), f"{name}_by")
        return rw.add(_dot(o, codes, scaled, f"{mine},{operand}->{lo}", first), name)
    return None


def _count(letters: str, sizes: dict[str, Dim]) -> int:
    return math.prod(d if isinstance(d := sizes[c], int) else PAGES for c in letters)


def _dot(o: flow.Dot, x: Value, y: Value, spec: str, first: bool) -> flow.Dot:
    """A contraction of ``x`` and ``y``, which ``spec`` names in this order; in ``o`` ``x`` comes first or second."""
    if first:
        return flow.Dot(x, y, spec)
    (left, right), out = spec.partition("->")[0].split(","), spec.partition("->")[2]
    return flow.Dot(y, x, f"{right},{left}->{out}")


def _arranged(rw: Rewriter, x: Value, mine: str, letters: str, name: str) -> Value:
    """``x``, whose axes are ``mine``, with axes in the order of ``letters``: of size 1 where it has none."""
    dims = {c: d for c, d in zip(mine, _type(x).shape, strict=True) if d != 1}
    if _type(x).shape != (squeezed := tuple(dims.values())):
        x = rw.add(flow.Reshape(x, squeezed), name)
    order = [list(dims).index(c) for c in letters if c in dims]
    if order != sorted(order):
        x = rw.add(flow.Transpose(x, tuple(order)), name)
    full = tuple(dims.get(c, 1) for c in letters)
    return x if _type(x).shape == full else rw.add(flow.Reshape(x, full), name)
