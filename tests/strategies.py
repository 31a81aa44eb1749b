"""Random functions of flow IR, for what holds of any value of them, NaN and infinities too; tests/generated has whole
flows as people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from vortex.errors import VortexError
from vortex.ir.core import Decl, Function, Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.numerics import narrow
from vortex.ir.printer import print_module
from vortex.ir.types import S, TensorType, bf16, bool_, f32, i32

GROUP, DIM = 2, 4
"""Powers of two, so that means of small integers are exact."""
SPECIALS = [np.nan, np.inf, -np.inf, -0.0, 0.0]

POLYNOMIAL: list[type[Op]] = [flow.Add, flow.Sub, flow.Mul]
SMOOTH: list[type[Op]] = [flow.Exp, flow.Sigmoid, flow.Tanh, flow.Sin, flow.Sqrt]
UNARY: list[type[Op]] = [flow.Neg, flow.Abs, flow.Floor, *SMOOTH]
BINARY: list[type[Op]] = [*POLYNOMIAL, flow.Div, flow.Maximum, flow.Minimum]
COMPARE: list[type[Op]] = [flow.Lt, flow.Ge, flow.Eq, flow.Ne]
REDUCE: list[type[Op]] = [flow.ReduceSum, flow.ReduceMean, flow.ReduceMax, flow.ReduceMin]
NUMBERS = [0.0, -0.0, 1.0, 2.0, 0.5, -1.0]


def new_module(fields: int = 2) -> tuple[Module, Function]:
    """A flow module whose @cache is trivial, and its @index without ops."""
    m = Module("flow", "random", {"page_size": 4, "head_dim": DIM, "group": GROUP, "dtype": "bf16"})
    tile = TensorType(bf16, (4, DIM))
    cache = Function("func", "cache", [Value("k", tile), Value("v", tile)])
    index = Function("func", "index", [Value("q", TensorType(bf16, (GROUP, DIM)))])
    names = []
    for i in range(fields):
        m.declare(Decl("field", f"c{i}", TensorType(f32, (DIM,))))
        reduce = (flow.ReduceMax, flow.ReduceMin)[i % 2]
        names.append((f"c{i}", cache.add(reduce(cache.args[0], (0,)), f"c{i}")))
        index.args.append(Value(f"c{i}", TensorType(f32, (S, DIM))))
    cache.append(flow.Return(tuple(v for _, v in names), tuple(n for n, _ in names)))
    m.define(cache)
    m.define(index)
    return m, index


def shape_of(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type


class _Builder:
    """Draws ops that fit the values at hand."""

    def __init__(self, draw: Any, f: Function, *, polynomial: bool) -> None:
        self.draw, self.f = draw, f
        self.values: list[Value] = list(f.args)
        kinds: list[Callable[[], Op]] = [self.binary, self.binary, self.reduce, self.dot, self.dot, self.shape]
        kinds += [self.constant, self.reduce if polynomial else self.binary, self.shift]
        if polynomial:  # else what is sorted may differ by rounding, and so its order
            kinds.append(self.sort)
        if not polynomial:
            kinds += [self.unary, self.unary, self.where, self.cast, self.pages, self.repeat]
        self.kinds = kinds
        self.polynomial = polynomial

    def value(self, float_only: bool = False) -> Value:
        ok = [v for v in self.values if not float_only or shape_of(v).dtype.is_float]
        # chains are what passes look for, so the latest value is likely
        return self.draw(st.sampled_from(ok[-1:] * 4 + ok[-6:] + ok[: len(self.f.args)]))

    def step(self) -> None:
        try:
            made = self.draw(st.sampled_from(self.kinds))()
        except (VortexError, _Unfit):
            return
        if made.result is not None and shape_of(made.value).numel <= 256 and len(shape_of(made.value).shape) <= 4:
            self.values.append(self.f.add(made))

    def unary(self) -> Op:
        return self.draw(st.sampled_from(UNARY))(self.value())

    def binary(self) -> Op:
        kinds = POLYNOMIAL if self.polynomial else BINARY
        return self.draw(st.sampled_from(kinds))(self.value(), self.value())

    def where(self) -> Op:
        test = self.f.add(self.draw(st.sampled_from(COMPARE))(self.value(), self.value()))
        return flow.Where(test, self.value(), self.value())

    def constant(self) -> Op:
        return flow.Constant(self.draw(st.sampled_from(NUMBERS)), TensorType(f32))

    def cast(self) -> Op:
        return flow.Cast(self.value(float_only=True), self.draw(st.sampled_from([f32, bf16, bool_])))

    def repeat(self) -> Op:
        made = self.values[-1].owner
        if made is None:
            raise _Unfit
        return made.with_operands(made.operands)

    def axes(self, v: Value) -> tuple[int, ...]:
        shape = shape_of(v).shape
        static = [i for i, d in enumerate(shape) if not self.polynomial or isinstance(d, int)]
        if not static:
            raise _Unfit
        return tuple(sorted(self.draw(st.sets(st.sampled_from(static), max_size=2))))

    def reduce(self) -> Op:
        x = self.value()
        kinds = REDUCE[:2] if self.polynomial else REDUCE
        return self.draw(st.sampled_from(kinds))(x, self.axes(x), self.draw(st.booleans()))

    def dot(self) -> Op:
        a, b = self.value(), self.value()
        sizes: dict[object, list[str]] = {}
        letters = iter("abcdefghij")

        def name(v: Value) -> str:
            mine = ""
            for d in shape_of(v).shape:
                known = [c for c in sizes.get(d, []) if c not in mine]
                mine += self.draw(st.sampled_from(known)) if known else next(letters)
                sizes.setdefault(d, []).append(mine[-1])
            return mine

        la, lb = name(a), name(b)
        both = list(dict.fromkeys(la + lb))
        drop = self.draw(st.sets(st.sampled_from(both), max_size=2)) if both else set()
        if self.polynomial:
            drop -= {c for c, d in zip(la + lb, shape_of(a).shape + shape_of(b).shape, strict=True) if d == S}
        return flow.Dot(a, b, f"{la},{lb}->{''.join(c for c in both if c not in drop)}")

    def shape(self) -> Op:
        v = self.value()
        shape = shape_of(v).shape
        kind = self.draw(st.integers(0, 4))
        if kind == 0:
            return flow.Transpose(v, tuple(self.draw(st.permutations(range(len(shape))))))
        if kind == 1:
            at = self.draw(st.integers(0, len(shape)))
            return flow.Reshape(v, (*shape[:at], 1, *shape[at:]))
        if kind == 2:
            return flow.Reshape(v, tuple(d for d in shape if d != 1))
        if kind == 3:
            spread = tuple(self.draw(st.sampled_from([1, 2])) if d == 1 else d for d in shape)
            return flow.Broadcast(v, spread)
        static = [i for i, d in enumerate(shape) if isinstance(d, int) and d > 0]
        if not static:
            raise _Unfit
        axis = self.draw(st.sampled_from(static))
        step = self.draw(st.sampled_from([1, 1, -1, 2]))
        size = self.draw(st.integers(1, 4))
        return flow.Slice(v, axis, self.draw(st.integers(0, 3)), size, step)

    def sort(self) -> Op:
        v = self.value()
        static = [i for i, d in enumerate(shape_of(v).shape) if isinstance(d, int) and d > 0]
        if not static:
            raise _Unfit
        axis = self.draw(st.sampled_from(static))
        index = self.f.add(flow.ArgSort(v, axis, self.draw(st.booleans())))
        index = self.f.add(flow.Slice(index, axis, 0, 1)) if self.draw(st.booleans()) else index
        return flow.Gather(v, index, axis)

    def shift(self) -> Op:
        v = self.value()
        if shape_of(v).page_axis is None:
            raise _Unfit
        by, outside = self.draw(st.sampled_from([1, -1, 2, -40])), self.draw(st.sampled_from(flow.Shift.OUTSIDE))
        return flow.Shift(v, by, outside, self.draw(st.sampled_from([0.0, 3.0])))

    def pages(self) -> Op:
        kind = self.draw(st.integers(0, 4))
        if kind == 3:
            return flow.PageIndex(TensorType(i32, (S,)))
        if kind == 4:
            return flow.PageCount(TensorType(i32))
        v = self.value()
        if not shape_of(v).shape:
            raise _Unfit
        axis = self.draw(st.integers(0, len(shape_of(v).shape) - 1))
        return flow.Softmax(v, axis) if kind < 2 else flow.Scan(v, axis, self.draw(st.sampled_from(["sum", "max"])))


class _Unfit(Exception):
    """The draw fits no op."""


def score(f: Function, v: Value, fold: type[flow.Reduce]) -> Value:
    """One number per page made from ``v``, which has a page axis."""
    axis = shape_of(v).page_axis
    assert axis is not None
    rest = tuple(i for i in range(len(shape_of(v).shape)) if i != axis)
    return f.add(fold(v, rest), "score") if rest else v


@st.composite
def flows(
    draw: Any,
    *,
    polynomial: bool = False,
    ranked: bool | None = None,
    steps: int = 8,
) -> str:
    """A flow module as text; @index ends in a topk, or returns values where ``ranked`` is false.

    Text, because hypothesis would print a module's every nested object.
    """
    m, f = new_module()
    builder = _Builder(draw, f, polynomial=polynomial)
    for _ in range(draw(st.integers(1, steps))):
        builder.step()
    if ranked if ranked is not None else draw(st.booleans()):
        over = [v for v in builder.values if shape_of(v).page_axis is not None]
        fold = draw(st.sampled_from(REDUCE[:2] if polynomial else REDUCE))
        f.append(flow.Return((f.add(flow.TopK(score(f, draw(st.sampled_from(over)), fold)), "p"),)))
    else:
        users = f.users()
        f.append(flow.Return(tuple([v for v in builder.values if not users[v]][-4:])))
    return print_module(m)


def arguments(f: Function, pages: int, seed: int, *, integers: bool = False, specials: bool = False) -> list[Any]:
    """Arrays for ``f``'s arguments: small integers, or normal numbers, with NaN and the like among them."""
    rng = np.random.default_rng(seed)
    out = []
    for a in f.args:
        t = shape_of(a)
        shape = [d if isinstance(d, int) else pages for d in t.shape]
        x = rng.integers(-3, 4, shape).astype(np.float32) if integers else rng.normal(size=shape).astype(np.float32)
        if specials:
            x = np.where(rng.random(shape) < 0.1, rng.choice(SPECIALS, shape), x)
        out.append(narrow(x, t.dtype))
    return out
