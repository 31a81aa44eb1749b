"""Comparison, choice and logic, element by element."""

from __future__ import annotations

import math
from typing import Any

import torch

from vortex.flow.optable import traces
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import emit, refuse
from vortex.ir.core import Op
from vortex.ir.dialects import flow
from vortex.ir.types import bool_


def as_bool(x: vTensor) -> vTensor:
    """``x != 0``."""
    return x if x.type.dtype == bool_ else emit(flow.Ne, x, lift(0))


def is_int(x: vTensor) -> bool:
    """Whether arithmetic on ``x`` is integer (a bool counts as 0 or 1)."""
    return not x.type.dtype.is_float


def _compare(names: str, op: type[Op]) -> None:
    @traces(*names.split(), to=op.name)
    def trace(input: Any, other: Any) -> vTensor:
        return emit(op, lift(input), lift(other))

    trace.__doc__ = op.__doc__


for _names, _op in {
    "lt less": flow.Lt,
    "le less_equal": flow.Le,
    "gt greater": flow.Gt,
    "ge greater_equal": flow.Ge,
    "eq": flow.Eq,
    "ne not_equal": flow.Ne,
}.items():
    _compare(_names, _op)


@traces("torch.where", to="flow.where")
def where(condition: Any, input: Any = None, other: Any = None) -> vTensor:
    """A where the condition holds, else b."""
    if input is None or other is None:
        raise refuse("where(cond) alone gives indices, whose number depends on the data", "where(cond, a, b)")
    return emit(flow.Where, _condition(lift(condition)), lift(input), lift(other))


def _condition(c: vTensor) -> vTensor:
    """A mask, which torch does not make of numbers by itself."""
    if c.type.dtype != bool_:
        raise refuse(f"the condition is {c.type}, not bool", "a comparison, such as x > 0; or x.bool()")
    return c


@traces("Tensor.where", to="flow.where")
def method_where(self: Any, condition: Any, other: Any) -> vTensor:
    """Gives x where the condition holds, else the other."""
    return where(condition, self, other)


@traces("masked_fill", to="flow.where")
def masked_fill(input: Any, mask: Any, value: Any) -> vTensor:
    """The value, as x's element type has it, where the mask holds, else x."""
    x, fill = lift(input), lift(value)
    if fill.ndim:
        raise refuse(f"the value is {fill.type}", "one number; torch.where(mask, a, b) takes tensors")
    if x.type.dtype == bool_:
        return where(mask, as_bool(fill), x)
    if is_int(x) and not is_int(fill):
        raise refuse(f"a float put into {x.type}", "an integer, or x.float() first")
    return where(mask, fill, x)


def _logical(names: str, op: type[Op]) -> None:
    @traces(*names.split(), to=op.name)
    def trace(input: Any, other: Any) -> vTensor:
        return emit(op, as_bool(lift(input)), as_bool(lift(other)))

    trace.__doc__ = op.__doc__


def _bitwise(names: str, op: type[Op]) -> None:
    @traces(*names.split(), to=op.name)
    def trace(input: Any, other: Any) -> vTensor:
        a, b = lift(input), lift(other)
        if not a.type.dtype == b.type.dtype == bool_:
            whole = is_int(a) and is_int(b)
            works = "x % 2**n is the last n bits, x // 2**n the others; or " if whole else ""
            works += "compare first, e.g. (x > 0) & (y > 0)"
            raise refuse(f"works on bool here, got {a.type} and {b.type}", works)
        return emit(op, a, b)

    trace.__doc__ = op.__doc__


for _name, _op in {"and": flow.And, "or": flow.Or, "xor": flow.Xor}.items():
    _logical(f"logical_{_name}", _op)
    _bitwise(f"bitwise_{_name} __{_name}__", _op)


@traces("logical_not", to="flow.not")
def logical_not(input: Any) -> vTensor:
    """Whether x is 0 or False."""
    return emit(flow.Not, as_bool(lift(input)))


@traces("bitwise_not", to="flow.not")
def bitwise_not(input: Any) -> vTensor:
    """Negation of a bool; -x - 1 of an integer."""
    x = lift(input)
    if x.type.dtype == bool_:
        return emit(flow.Not, x)
    if x.type.dtype.is_float:
        raise refuse(f"works on bool and integers, got {x.type}", "compare first, e.g. ~(x > 0)")
    return -x - 1


@traces("isfinite", to="|x| < inf")
def isfinite(input: Any) -> vTensor:
    """Neither infinite nor NaN."""
    return lift(input).abs() < math.inf


@traces("isinf", to="|x| == inf")
def isinf(input: Any) -> vTensor:
    """Plus or minus infinity."""
    return lift(input).abs() == math.inf


@traces("isposinf", to="x == inf")
def isposinf(input: Any) -> vTensor:
    """Plus infinity."""
    return lift(input) == math.inf


@traces("isneginf", to="x == -inf")
def isneginf(input: Any) -> vTensor:
    """Minus infinity."""
    return lift(input) == -math.inf


@traces("nan_to_num", to="where")
def nan_to_num(
    input: Any, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> vTensor:
    """Numbers in place of NaN and the infinities; by default 0 and the largest fp32."""
    x, most = lift(input), torch.finfo(torch.float32).max
    if is_int(x):
        return x
    x = where(x == math.inf, most if posinf is None else float(posinf), x)
    x = where(x == -math.inf, -most if neginf is None else float(neginf), x)
    return where(x.isnan(), 0.0 if nan is None else float(nan), x)


@traces("isclose", to="|a - b| <= atol + rtol * |b|")
def isclose(input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> vTensor:
    """Whether two numbers are nearly equal."""
    a, b = lift(input), lift(other)
    near = ((a - b).abs() <= b.abs() * rtol + atol) & isfinite(b) | (a == b)
    return near | (a.isnan() & b.isnan()) if equal_nan else near
