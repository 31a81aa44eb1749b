"""Element by element: arithmetic, comparison, choice, rounding, types."""

from __future__ import annotations

import math
from typing import Any

import torch

from vortex.flow.optable import traces
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import DTYPES, emit, refuse
from vortex.ir.core import Op
from vortex.ir.dialects import flow
from vortex.ir.types import bool_, f32, i32

LN2, LN10 = math.log(2.0), math.log(10.0)


def as_bool(x: vTensor) -> vTensor:
    """``x != 0``."""
    return x if x.type.dtype == bool_ else emit(flow.Ne, x, lift(0))


def is_int(x: vTensor) -> bool:
    """Whether arithmetic on ``x`` is integer (a bool counts as 0 or 1)."""
    return not x.type.dtype.is_float


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
    "neg negative": flow.Neg, "abs absolute": flow.Abs, "exp": flow.Exp, "log": flow.Log, "sqrt": flow.Sqrt,
    "rsqrt": flow.Rsqrt, "sin": flow.Sin, "cos": flow.Cos, "tanh F.tanh": flow.Tanh,
    "sigmoid F.sigmoid special.expit": flow.Sigmoid, "erf special.erf": flow.Erf, "isnan": flow.IsNan,
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
    """x itself."""
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
    """a + alpha * b"""
    a, b = lift(input), lift(other)
    if a.type.dtype == b.type.dtype == bool_:
        return emit(flow.Or, a, b)
    return emit(flow.Add, a, b if alpha == 1 else b * alpha)


@traces("sub", "subtract", to="flow.sub")
def sub(input: Any, other: Any, *, alpha: float = 1) -> vTensor:
    """a - alpha * b"""
    a, b = lift(input), lift(other)
    if bool_ in (a.type.dtype, b.type.dtype):
        raise refuse("torch does not subtract bools", "use ^ or a.logical_not()")
    return emit(flow.Sub, a, b if alpha == 1 else b * alpha)


@traces("rsub", to="flow.sub")
def rsub(input: Any, other: Any, *, alpha: float = 1) -> vTensor:
    """b - alpha * a"""
    return sub(other, input, alpha=alpha)


@traces("div", "divide", "true_divide", to="flow.div")
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> vTensor:
    """a / b; rounding_mode 'floor' or 'trunc' rounds the quotient."""
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
    """a ** b"""
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
    """x ** 2"""
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
    """x + value * a * b"""
    return add(input, lift(tensor1) * lift(tensor2), alpha=value)


@traces("addcdiv", to="x + value * a / b")
def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> vTensor:
    """x + value * a / b"""
    return add(input, lift(tensor1) / lift(tensor2), alpha=value)


# choice and logic --------------------------------------------------------------------------------


def _compare(names: str, op: type[Op]) -> None:
    @traces(*names.split(), to=op.name)
    def trace(input: Any, other: Any) -> vTensor:
        return emit(op, lift(input), lift(other))

    trace.__doc__ = op.__doc__


for _names, _op in {
    "lt less": flow.Lt, "le less_equal": flow.Le, "gt greater": flow.Gt, "ge greater_equal": flow.Ge,
    "eq": flow.Eq, "ne not_equal": flow.Ne,
}.items():
    _compare(_names, _op)


@traces("where", to="flow.where")
def where(condition: Any, input: Any = None, other: Any = None) -> vTensor:
    """a where the condition holds, else b."""
    if input is None or other is None:
        raise refuse("where(cond) alone gives indices, whose number depends on the data", "where(cond, a, b)")
    return emit(flow.Where, lift(condition), lift(input), lift(other))


@traces("Tensor.where", to="flow.where")
def method_where(self: Any, condition: Any, other: Any) -> vTensor:
    """x where the condition holds, else the other."""
    return where(condition, self, other)


@traces("masked_fill", to="flow.where")
def masked_fill(input: Any, mask: Any, value: Any) -> vTensor:
    """The value where the mask holds, else x."""
    return where(mask, value, input)


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
            raise refuse(f"works on bool here, got {a.type} and {b.type}", "compare first, e.g. (x > 0) & (y > 0)")
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
def nan_to_num(input: Any, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> vTensor:
    """Numbers in place of NaN and the infinities; by default 0 and the largest fp32."""
    x, most = lift(input), torch.finfo(torch.float32).max
    if is_int(x):
        return x
    x = where(x == math.inf, most if posinf is None else float(posinf), x)
    x = where(x == -math.inf, -most if neginf is None else float(neginf), x)
    return where(x.isnan(), 0.0 if nan is None else float(nan), x)


# types -------------------------------------------------------------------------------------------


def cast(x: vTensor, dtype: torch.dtype) -> vTensor:
    """Rounded to a torch element type; nothing when it is of that type."""
    to = DTYPES.get(dtype)
    if to is None:
        raise refuse(f"no element type for {dtype}", f"one of {', '.join(str(d) for d in DTYPES)}")
    if to == f32 and x.type.dtype.is_float:
        return x  # narrow floats widen when they are read
    return x if x.type.dtype == to else emit(flow.Cast, x, to=to)


def _cast(name: str, dtype: torch.dtype) -> None:
    @traces(f"Tensor.{name}", to="flow.cast")
    def trace(self: Any) -> vTensor:
        return cast(lift(self), dtype)

    trace.__doc__ = f"As {dtype}."


for _name, _dtype in {
    "float": torch.float32, "bfloat16": torch.bfloat16, "half": torch.float16, "bool": torch.bool,
    "int": torch.int32, "long": torch.int64,
}.items():
    _cast(_name, _dtype)


@traces("Tensor.to", to="flow.cast")
def to(self: Any, *args: Any, **kwargs: Any) -> vTensor:
    """As another element type; a device other than the tensor's own is refused."""
    x, wanted = lift(self), [*args, *kwargs.values()]
    if unknown := set(kwargs) - {"dtype", "device", "other", "non_blocking", "copy"}:
        raise refuse(f"argument '{unknown.pop()}' is not supported", "to(dtype) or to(other)")
    for item in wanted:
        if isinstance(item, torch.dtype):
            x = cast(x, item)
        elif isinstance(item, vTensor | torch.Tensor):
            x = cast(x, item.dtype)
        elif item is not None and not isinstance(item, bool) and torch.device(item).type != "cpu":
            raise refuse(f"a flow has no say in devices, got {item}", "to(dtype); leave devices to the compiler")
    return x


@traces("Tensor.type_as", to="flow.cast")
def type_as(self: Any, other: Any) -> vTensor:
    """As the element type of another tensor."""
    return cast(lift(self), other.dtype)


@traces("clone", "detach", "Tensor.contiguous", "Tensor.cpu", to="x")
def same(input: Any, *, memory_format: Any = None) -> vTensor:
    """x itself: a traced value has no storage to copy."""
    return lift(input)

