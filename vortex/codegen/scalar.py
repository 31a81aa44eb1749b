"""One emitter for each scalar op of the flow dialect: operands in, a TVM expression out. CPU and GPU share it.

NaN needs care: TVM folds ``x != x`` to false and its own max and min lose a NaN on one side.
"""

from __future__ import annotations

from collections.abc import Callable

from vortex.codegen.narrow import round_to
from vortex.codegen.tir import F32, I32, U32, Expr, T, cast, differ, equal, f32, i32, is_nan, kind
from vortex.ir.core import Op
from vortex.ir.dialects import flow
from vortex.ir.types import DType, TensorType, bool_


def number_type(dtype: DType) -> str:
    """The TVM type in which values of ``dtype`` are computed."""
    if dtype == bool_:
        return "bool"
    return F32 if dtype.is_float else I32


def convert(x: Expr, to: str) -> Expr:
    """Between the computing types: float32, int32 and bool."""
    now = kind(x)
    if now == to:
        return x
    if to == "bool":
        return T.Or(differ(x, f32(0)), is_nan(x)) if now == F32 else differ(x, i32(0))
    if now == "bool":
        one, zero = (f32(1), f32(0)) if to == F32 else (i32(1), i32(0))
        return T.Select(x, one, zero)
    return cast(to, x)


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger; NaN if either is."""
    return _extreme(a > b, b > a, a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller; NaN if either is."""
    return _extreme(a < b, b < a, a, b)


def _extreme(first: Expr, second: Expr, a: Expr, b: Expr) -> Expr:
    """One machine max or min gives ``b`` where a NaN is compared, the mirrored one ``a``: or-ed, any NaN stays NaN.

    Where neither is NaN both are the same number, but for the sign of a zero.
    """
    if kind(a) != F32:
        return T.Select(first, a, b)
    sides = T.Select(first, a, b), T.Select(second, b, a)
    return T.reinterpret(F32, T.bitwise_or(*(T.reinterpret(U32, x) for x in sides)))


def floor_mod(a: Expr, b: Expr) -> Expr:
    return T.floormod(a, b) if kind(a) == I32 else a - T.floor(a / b) * b


def absolute(x: Expr) -> Expr:
    if kind(x) == I32:
        return T.Select(x < i32(0), i32(0) - x, x)
    return T.reinterpret(F32, T.bitwise_and(T.reinterpret(U32, x), T.uint32(0x7FFFFFFF)))


def invert(x: Expr) -> Expr:
    """Not x. TVM turns ``not a > b`` into ``a <= b``, which is wrong for NaN: so the bool is looked at as a number."""
    return equal(convert(x, I32), i32(0))


def same(a: Expr, b: Expr) -> Expr:
    """a == b, false for NaN also where TVM sees that both are one expression and folds it to true."""
    return T.And(equal(a, b), invert(is_nan(a))) if kind(a) == F32 else equal(a, b)


UNARY: dict[type[Op], Callable[[Expr], Expr]] = {
    flow.Neg: lambda x: x * (f32(-1) if kind(x) == F32 else i32(-1)),
    flow.Abs: absolute,
    flow.Exp: T.exp,
    flow.Log: T.log,
    flow.Sqrt: T.sqrt,
    flow.Rsqrt: lambda x: f32(1) / T.sqrt(x),
    flow.Sin: T.sin,
    flow.Cos: T.cos,
    flow.Tanh: T.tanh,
    flow.Sigmoid: lambda x: f32(1) / (f32(1) + T.exp(x * f32(-1))),
    flow.Erf: T.erf,
    flow.Floor: T.floor,
    flow.Ceil: T.ceil,
    flow.Round: T.nearbyint,
    flow.Trunc: T.trunc,
    flow.IsNan: is_nan,
    flow.Not: invert,
}

BINARY: dict[type[Op], Callable[[Expr, Expr], Expr]] = {
    flow.Add: lambda a, b: a + b,
    flow.Sub: lambda a, b: a - b,
    flow.Mul: lambda a, b: a * b,
    flow.Div: lambda a, b: a / b,
    flow.Pow: T.pow,
    flow.Remainder: floor_mod,
    flow.Maximum: maximum,
    flow.Minimum: minimum,
    flow.Lt: lambda a, b: a < b,
    flow.Le: lambda a, b: a <= b,
    flow.Gt: lambda a, b: a > b,
    flow.Ge: lambda a, b: a >= b,
    flow.Eq: same,
    flow.Ne: lambda a, b: invert(same(a, b)),
    flow.And: T.And,
    flow.Or: T.Or,
    flow.Xor: lambda a, b: differ(convert(a, I32), convert(b, I32)),
}
"""Operands arrive in one computing type: that of the result, or for comparisons the wider of the two."""


def is_scalar(o: Op) -> bool:
    """Whether the op works element by element."""
    return type(o) in UNARY or type(o) in BINARY or isinstance(o, flow.Where | flow.Cast)


def emit_scalar(o: Op, operands: list[Expr]) -> Expr:
    """The expression of one element of ``o``'s result from its operands' elements."""
    assert o.result is not None and isinstance(o.result.type, TensorType)
    out = number_type(o.result.type.dtype)
    if isinstance(o, flow.Where):
        return T.Select(operands[0], convert(operands[1], out), convert(operands[2], out))
    if isinstance(o, flow.Cast):
        return round_to(convert(operands[0], out), o.to)
    if type(o) in UNARY:
        wants = kind(operands[0]) if isinstance(o, flow.Neg | flow.Not) else F32
        if isinstance(o, flow.Neg):
            wants = out
        return UNARY[type(o)](convert(operands[0], wants))
    a, b = operands
    if isinstance(o, flow.Compare) and not isinstance(o, flow.Logical):
        out = F32 if F32 in (kind(a), kind(b)) else I32
    return BINARY[type(o)](convert(a, out), convert(b, out))


def fold_of(o: Op, dtype: str) -> tuple[Expr, Callable[[Expr, Expr], Expr]]:
    """What a reduction starts from and how it takes in an element, in the computing type ``dtype``."""
    how = o.kind if isinstance(o, flow.Scan) else {
        flow.ReduceSum: "sum", flow.ReduceMean: "sum", flow.Dot: "sum", flow.Conv: "sum", flow.ReduceProd: "prod",
        flow.ReduceMax: "max", flow.ReduceMin: "min",
    }[type(o)]  # fmt: skip
    is_float = dtype == F32
    if how == "sum":
        return (f32(0) if is_float else i32(0)), lambda a, b: a + b
    if how == "prod":
        return (f32(1) if is_float else i32(1)), lambda a, b: a * b
    if how == "max":
        return (f32(float("-inf")) if is_float else i32(-(2**31))), maximum
    return (f32(float("inf")) if is_float else i32(2**31 - 1)), minimum
