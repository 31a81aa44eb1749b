"""Arithmetic, element by element."""

from __future__ import annotations

import math
from typing import Any

from vortex.flow.logic import is_int, where
from vortex.flow.optable import traces
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import emit, refuse
from vortex.ir.core import Op
from vortex.ir.dialects import flow
from vortex.ir.types import bool_, i32

LN2, LN10 = math.log(2.0), math.log(10.0)


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
    "log": flow.Log,
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


def _arithmetic(names: str, op: type[Op], of_bools: type[Op] | None) -> None:
    @traces(*names.split(), to=op.name)
    def trace(input: Any, other: Any) -> vTensor:
        a, b = lift(input), lift(other)
        if a.type.dtype == b.type.dtype == bool_:
            if of_bools is None:
                raise refuse("both operands are bool", "make one of them a number: mask.float()")
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
    if rounding_mode == "floor":
        return floor_divide(a, b)
    q = emit(flow.Div, a, b)
    if rounding_mode is None:
        return q
    if rounding_mode != "trunc":
        raise refuse(f"rounding_mode={rounding_mode!r}", "rounding_mode is None, 'floor' or 'trunc'")
    q = emit(flow.Trunc, q)
    return emit(flow.Cast, q, to=i32) if is_int(a) and is_int(b) else q


@traces("floor_divide", "Tensor.__floordiv__", to="round((a - a mod b) / b)")
def floor_divide(input: Any, other: Any) -> vTensor:
    """Largest integer not above a / b."""
    a, b = lift(input), lift(other)
    q = emit(flow.Round, emit(flow.Div, emit(flow.Sub, a, emit(flow.Remainder, a, b)), b))
    if is_int(a) and is_int(b):
        return emit(flow.Cast, q, to=i32)
    return emit(flow.Where, emit(flow.Eq, b, lift(0)), emit(flow.Div, a, b), q)


@traces("fmod", to="sign(a) * (|a| mod |b|)")
def fmod(input: Any, other: Any) -> vTensor:
    """Remainder with the sign of a."""
    a, b = lift(input), lift(other)
    r = emit(flow.Remainder, a.abs(), b.abs())
    return emit(flow.Where, emit(flow.Lt, a, lift(0)), -r, r)


@traces("pow", "float_power", to="flow.pow, or products and roots for a constant exponent")
def pow_(input: Any, exponent: Any) -> vTensor:
    """Gives a ** b"""
    if isinstance(exponent, int | float) and not isinstance(exponent, bool) and isinstance(input, vTensor):
        return _power(input, exponent)
    return emit(flow.Pow, lift(input), lift(exponent))


def _power(x: vTensor, n: float) -> vTensor:
    """Small integer powers as products, halves as roots: exact, and far cheaper than a general power."""
    if n == int(n) and 1 <= abs(n) <= 4 and not (n < 0 and is_int(x)):
        square = x * x if abs(n) > 1 else x
        y = {1: x * 1.0 if not is_int(x) else x, 2: square}.get(int(abs(n)))
        y = y if y is not None else square * (x if abs(n) == 3 else square)
        return y if n > 0 else 1.0 / y
    if n == 0.5:
        return emit(flow.Sqrt, x)
    if n == -0.5:
        return emit(flow.Rsqrt, x)
    return emit(flow.Pow, x, lift(n))


@traces("square", to="x * x")
def square(input: Any) -> vTensor:
    """Gives x ** 2"""
    x = lift(input)
    return x * x


@traces("reciprocal", to="1 / x")
def reciprocal(input: Any) -> vTensor:
    """1 / x"""
    return 1.0 / lift(input)


@traces("exp2", "special.exp2", to="flow.pow")
def exp2(input: Any) -> vTensor:
    """2 ** x"""
    return emit(flow.Pow, lift(2.0), lift(input))


@traces("log2", to="log(x) / ln 2")
def log2(input: Any) -> vTensor:
    """Logarithm to base 2."""
    return emit(flow.Log, lift(input)) / LN2


@traces("log10", to="log(x) / ln 10")
def log10(input: Any) -> vTensor:
    """Logarithm to base 10."""
    return emit(flow.Log, lift(input)) / LN10


@traces("log1p", "special.log1p", to="log(u) * x / (u - 1), u = 1 + x")
def log1p(input: Any) -> vTensor:
    """log(1 + x), accurate near 0 (Kahan's correction)."""
    x = lift(input) * 1.0
    u = x + 1.0
    exact = emit(flow.Log, u) * (x / (u - 1.0))
    near = where(u == 1.0, x, exact)
    return where(u == math.inf, u, near)


@traces("expm1", "special.expm1", to="(u - 1) * x / log(u), u = exp(x)")
def expm1(input: Any) -> vTensor:
    """exp(x) - 1, accurate near 0 (Kahan's correction)."""
    x = lift(input) * 1.0
    u = emit(flow.Exp, x)
    less = u - 1.0
    near = where(u == 1.0, x, less * (x / emit(flow.Log, u)))
    return where(less == -1.0, less, where(u == math.inf, u, near))


@traces("tan", to="sin / cos")
def tan(input: Any) -> vTensor:
    """Tangent, radians."""
    x = lift(input)
    return x.sin() / x.cos()


@traces("frac", to="x - trunc(x)")
def frac(input: Any) -> vTensor:
    """Fractional part."""
    x = lift(input)
    return x - x.trunc()


@traces("sign", "sgn", to="where")
def sign(input: Any) -> vTensor:
    """-1, 0 or 1; 0 for NaN."""
    x = lift(input)
    one, zero = (lift(1), lift(0)) if is_int(x) else (lift(1.0), lift(0.0))
    return where(x > 0, one, where(x < 0, -one, zero))


@traces("hypot", to="sqrt(a * a + b * b)")
def hypot(input: Any, other: Any) -> vTensor:
    """Length of the vector (a, b)."""
    a, b = lift(input), lift(other)
    return (a * a + b * b).sqrt()


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


@traces("lerp", to="a + w * (b - a)")
def lerp(input: Any, end: Any, weight: Any) -> vTensor:
    """Between a and b, w of the way."""
    a, b = lift(input), lift(end)
    return a + lift(weight) * (b - a)


@traces("addcmul", to="x + value * a * b")
def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> vTensor:
    """Gives x + value * a * b"""
    return add(input, lift(tensor1) * lift(tensor2), alpha=value)


@traces("addcdiv", to="x + value * a / b")
def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> vTensor:
    """Gives x + value * a / b"""
    return add(input, lift(tensor1) / lift(tensor2), alpha=value)
