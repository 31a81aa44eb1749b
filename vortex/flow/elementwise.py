"""Arithmetic, element by element."""

from __future__ import annotations

import math
from typing import Any

import torch

from vortex.flow.casts import integer
from vortex.flow.logic import is_int, where
from vortex.flow.optable import traces
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import active, emit, refuse
from vortex.ir.core import Op
from vortex.ir.dialects import flow
from vortex.ir.types import bool_

LN2 = math.log(2.0)


def _unary(names: str, op: type[Op]) -> None:
    @traces(*names.split(), to=op.name)
    def trace(input: Any) -> vTensor:
        return emit(op, lift(input))

    trace.__doc__ = op.__doc__


def _rounding(names: str, op: type[Op]) -> None:
    @traces(*names.split(), to=op.name)
    def trace(input: Any) -> vTensor:
        x = lift(input)
        return x if is_int(x) else emit(op, x)

    trace.__doc__ = op.__doc__


for _names, _op in {
    "neg negative": flow.Neg,
    "abs absolute": flow.Abs,
    "exp": flow.Exp,
    "exp2 special.exp2": flow.Exp2,
    "log": flow.Log,
    "log2": flow.Log2,
    "log10": flow.Log10,
    "tan": flow.Tan,
    "sqrt": flow.Sqrt,
    "rsqrt": flow.Rsqrt,
    "sin": flow.Sin,
    "cos": flow.Cos,
    "tanh F.tanh": flow.Tanh,
    "sigmoid F.sigmoid special.expit": flow.Sigmoid,
    "erf special.erf": flow.Erf,
    "isnan": flow.IsNan,
}.items():
    _unary(_names, _op)
for _names, _op in {"floor": flow.Floor, "ceil": flow.Ceil, "trunc fix": flow.Trunc}.items():
    _rounding(_names, _op)


@traces("round", to="flow.round")
def round_(input: Any, *, decimals: int = 0) -> vTensor:
    """Nearest integer, halves to even."""
    x = lift(input)
    if decimals != 0:
        raise refuse(f"decimals={decimals} is not supported", "decimals=0; scale before and after")
    return x if is_int(x) else emit(flow.Round, x)


@traces("positive", to="x")
def positive(input: Any) -> vTensor:
    """The operand itself."""
    return lift(input)


def _numbers(a: vTensor, b: vTensor) -> None:
    """Refuse what torch does not divide: bools, and integers by a 0 that is written."""
    if a.type.dtype == b.type.dtype == bool_:
        raise refuse("both operands are bool", "make one of them a number: mask.float()")
    by = active().integers.of(b.value)
    if is_int(a) and by is not None and by.low == by.high == 0:
        raise refuse("integers divided by 0", "another divisor, or x.float() first")


def _arithmetic(names: str, op: type[Op], of_bools: type[Op] | None) -> None:
    @traces(*names.split(), to=op.name)
    def trace(input: Any, other: Any) -> vTensor:
        a, b = lift(input), lift(other)
        if of_bools is None:
            _numbers(a, b)
        elif a.type.dtype == b.type.dtype == bool_:
            return emit(of_bools, a, b)
        return emit(op, a, b)

    trace.__doc__ = op.__doc__


_arithmetic("mul multiply", flow.Mul, flow.And)
_arithmetic("maximum", flow.Maximum, flow.Or)
_arithmetic("minimum", flow.Minimum, flow.And)
_arithmetic("remainder", flow.Remainder, None)


@traces("add", to="flow.add")
def add(input: Any, other: Any, *, alpha: float = 1) -> vTensor:
    """Gives a + alpha * b"""
    a, b = lift(input), lift(other)
    if a.type.dtype == b.type.dtype == bool_:
        return emit(flow.Or, a, b)
    return emit(flow.Add, a, b if alpha == 1 else b * alpha)


@traces("sub", "subtract", to="flow.sub")
def sub(input: Any, other: Any, *, alpha: float = 1) -> vTensor:
    """Gives a - alpha * b"""
    a, b = lift(input), lift(other)
    if bool_ in (a.type.dtype, b.type.dtype):
        raise refuse("torch does not subtract bools", "use ^ or a.logical_not()")
    return emit(flow.Sub, a, b if alpha == 1 else b * alpha)


@traces("rsub", to="flow.sub")
def rsub(input: Any, other: Any, *, alpha: float = 1) -> vTensor:
    """B - alpha * a"""
    return sub(other, input, alpha=alpha)


@traces("div", "divide", "true_divide", to="flow.div")
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> vTensor:
    """A / b; rounding_mode 'floor' or 'trunc' rounds the quotient."""
    a, b = lift(input), lift(other)
    if rounding_mode is None:
        return emit(flow.Div, a, b)
    if rounding_mode == "floor":
        return floor_divide(a, b)
    if rounding_mode != "trunc":
        raise refuse(f"rounding_mode={rounding_mode!r}", "rounding_mode is None, 'floor' or 'trunc'")
    if not (is_int(a) and is_int(b)):
        return emit(flow.Trunc, emit(flow.Div, a, b))
    _numbers(a, b)
    down, left = emit(flow.FloorDivide, a, b), emit(flow.Fmod, a, b)
    return where((left != 0) & ((left < 0) ^ (b < 0)), down + 1, down)


@traces("floor_divide", "Tensor.__floordiv__", to="flow.floor_divide, or flow.fmod for floats")
def floor_divide(input: Any, other: Any) -> vTensor:
    """Largest integer not above a / b; integers by 0 give 0."""
    a, b = lift(input), lift(other)
    if is_int(a) and is_int(b):
        _numbers(a, b)
        return emit(flow.FloorDivide, a, b)
    a = a * 1.0 if a.type.dtype == bool_ else a
    left = emit(flow.Fmod, a, b)
    q = (a - left) / b
    q = where((left != 0) & ((left < 0) ^ (b < 0)), q - 1.0, q)
    near = emit(flow.Floor, q)
    return where(b == 0, emit(flow.Div, a, b), where(q - near > 0.5, near + 1.0, near))


@traces("fmod", to="flow.fmod")
def fmod(input: Any, other: Any) -> vTensor:
    """Remainder with the sign of a; integers modulo 0 give 0."""
    a, b = lift(input), lift(other)
    _numbers(a, b)
    return emit(flow.Fmod, a, b)


@traces("pow", "Tensor.__pow__", to="flow.pow, or products and roots for a constant exponent")
def pow_(input: Any, exponent: Any) -> vTensor:
    """Gives a ** b"""
    if isinstance(exponent, int | float) and not isinstance(exponent, bool) and isinstance(input, vTensor):
        return _power(input, exponent)
    a, b = lift(input), lift(exponent)
    if is_int(a) and is_int(b):
        known, written = active().integers, b.value.owner
        base, whole = known.of(a.value), known.of(b.value)
        # the number of a tensor without axes, which is known as well
        if base is not None and whole is not None and isinstance(written, flow.Constant):
            made = base.dtype if a.ndim or whole.python else torch.promote_types(base.dtype, whole.dtype)
            return _whole_power(a if made == torch.bool else integer(a, made), int(written.number))
        raise refuse(f"{a.type} to the power of {b.type} is an integer in torch", "a.float() ** b, or a number as b")
    return emit(flow.Pow, a, b)


def _power(x: vTensor, n: float) -> vTensor:
    """Small integer powers as products, halves as roots: exact, and far cheaper than a general power."""
    if is_int(x) and isinstance(n, int):
        return _whole_power(x, n)
    x = x * 1.0 if is_int(x) else x
    if n in (1, 2, 3, 4, -1, -2):
        square = x * x if abs(n) > 1 else x
        y = {1: x * 1.0, 2: square}.get(int(abs(n)))
        y = y if y is not None else square * (x if abs(n) == 3 else square)
        return y if n > 0 else 1.0 / y
    if n == 0.5:
        return emit(flow.Sqrt, x)
    if n == -0.5:
        return emit(flow.Rsqrt, x)
    return emit(flow.Pow, x, lift(n))


def _whole_power(x: vTensor, n: int) -> vTensor:
    """An integer power as torch computes it: by squaring, so that it wraps as products do."""
    if n < 0:
        raise refuse(f"an integer to the power of {n}", "x.float() ** n")
    x = x * 1 if x.type.dtype == bool_ else x
    y = x * 0 + 1
    while n:
        y = y * x if n & 1 else y
        n >>= 1
        x = x * x if n else x
    return y


@traces("square", to="x * x")
def square(input: Any) -> vTensor:
    """Gives x ** 2; an integer for a bool."""
    x = lift(input)
    x = x * 1 if x.type.dtype == bool_ else x
    return x * x


@traces("reciprocal", to="1 / x")
def reciprocal(input: Any) -> vTensor:
    """1 / x"""
    return 1.0 / lift(input)


@traces("log1p", "special.log1p", to="flow.log1p")
def log1p(input: Any) -> vTensor:
    """log(1 + x), accurate near 0."""
    return emit(flow.Log1p, lift(input))


@traces("expm1", "special.expm1", to="flow.expm1")
def expm1(input: Any) -> vTensor:
    """exp(x) - 1, accurate near 0."""
    return emit(flow.Expm1, lift(input))


@traces("frac", to="x - trunc(x)")
def frac(input: Any) -> vTensor:
    """Fractional part."""
    x = lift(input)
    return x - x.trunc()


@traces("sign", "sgn", to="where")
def sign(input: Any) -> vTensor:
    """-1, 0 or 1; 0 for NaN."""
    x = lift(input)
    if x.type.dtype == bool_:
        return x
    if is_int(x):
        return clamp(x, -1, 1)
    return where(x > 0, 1.0, where(x < 0, -1.0, 0.0))


@traces("hypot", to="flow.hypot")
def hypot(input: Any, other: Any) -> vTensor:
    """Length of the vector (a, b)."""
    a, b = lift(input), lift(other)
    if is_int(a) and is_int(b):
        raise refuse("torch has no hypot of integers", "a.float()")
    return emit(flow.Hypot, a, b)


@traces("logaddexp", to="max + log1p(exp(-|a - b|))")
def logaddexp(input: Any, other: Any) -> vTensor:
    """log(exp(a) + exp(b))"""
    a, b = lift(input), lift(other)
    top = emit(flow.Maximum, a, b)
    return where(a == b, top + LN2, top + log1p((-(a - b).abs()).exp()))


@traces("fmax", to="where")
def fmax(input: Any, other: Any) -> vTensor:
    """The larger; the other one where one is NaN."""
    a, b = lift(input), lift(other)
    return where(a.isnan(), b, where(b.isnan(), a, emit(flow.Maximum, a, b)))


@traces("fmin", to="where")
def fmin(input: Any, other: Any) -> vTensor:
    """The smaller; the other one where one is NaN."""
    a, b = lift(input), lift(other)
    return where(a.isnan(), b, where(b.isnan(), a, emit(flow.Minimum, a, b)))


@traces("clamp", "clip", to="flow.maximum, flow.minimum")
def clamp(input: Any, min: Any = None, max: Any = None) -> vTensor:
    """Limited to [min, max]; the bounds are numbers or tensors."""
    x = lift(input)
    if min is None and max is None:
        raise refuse("neither min nor max is given", "clamp(min=..., max=...)")
    if min is not None:
        x = emit(flow.Maximum, x, lift(min))
    return x if max is None else emit(flow.Minimum, x, lift(max))


@traces("clamp_min", to="flow.maximum")
def clamp_min(input: Any, min: Any) -> vTensor:
    """At least min."""
    return clamp(input, min=min)


@traces("clamp_max", to="flow.minimum")
def clamp_max(input: Any, max: Any) -> vTensor:
    """At most max."""
    return clamp(input, max=max)


@traces("lerp", to="a + w * (b - a), or b - (1 - w) * (b - a)")
def lerp(input: Any, end: Any, weight: Any) -> vTensor:
    """Between a and b, w of the way, measured from the nearer end as torch does."""
    a, b, w = lift(input), lift(end), lift(weight)
    if isinstance(weight, int | float):
        return a + w * (b - a) if abs(weight) < 0.5 else b - (b - a) * (1.0 - w)
    return where(w.abs() < 0.5, a + w * (b - a), b - (b - a) * (1.0 - w))


@traces("addcmul", to="x + value * a * b")
def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> vTensor:
    """Gives x + value * a * b"""
    return add(input, lift(tensor1) * lift(tensor2), alpha=value)


@traces("addcdiv", to="x + value * a / b")
def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> vTensor:
    """Gives x + value * a / b"""
    return add(input, lift(tensor1) / lift(tensor2), alpha=value)
