"""Element by element: arithmetic, comparisons, choice and casts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vortex.ir.core import Op, Value, op
from vortex.ir.dialects.flow.kinds import (
    Binary,
    Compare,
    Logical,
    Unary,
    alike,
    arithmetic,
    broadcast,
    one_page_axis,
    tensor,
)
from vortex.ir.numerics import narrow, widen
from vortex.ir.types import DType, TensorType, bool_, f32, i32


@op("flow.neg")
class Neg(Unary):
    """-x"""

    rounds = False

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        return t.with_dtype(arithmetic([t.dtype]))

    def computes_in(self) -> DType:
        return tensor(self, self.value).dtype

    def evaluate(self, x: Any) -> Any:
        return np.negative(*alike(x))


@op("flow.abs")
class Abs(Neg):
    """|x|"""

    repeats = 3

    def evaluate(self, x: Any) -> Any:
        return np.abs(*alike(x))


@op("flow.exp")
class Exp(Unary):
    """e ** x"""

    increasing = True
    positive = "always"

    def evaluate(self, x: Any) -> Any:
        return np.exp(widen(x))


@op("flow.log")
class Log(Unary):
    """Natural logarithm."""

    def evaluate(self, x: Any) -> Any:
        return np.log(widen(x))


@op("flow.log2")
class Log2(Unary):
    """Logarithm to base 2."""

    def evaluate(self, x: Any) -> Any:
        return np.log2(widen(x))


@op("flow.log10")
class Log10(Unary):
    """Logarithm to base 10."""

    def evaluate(self, x: Any) -> Any:
        return np.log10(widen(x))


@op("flow.log1p")
class Log1p(Unary):
    """log(1 + x), accurate near 0."""

    def evaluate(self, x: Any) -> Any:
        return np.log1p(widen(x))


@op("flow.exp2")
class Exp2(Unary):
    """2 ** x"""

    def evaluate(self, x: Any) -> Any:
        return np.exp2(widen(x))


@op("flow.expm1")
class Expm1(Unary):
    """exp(x) - 1, accurate near 0."""

    def evaluate(self, x: Any) -> Any:
        return np.expm1(widen(x))


@op("flow.sqrt")
class Sqrt(Unary):
    """Square root."""

    def evaluate(self, x: Any) -> Any:
        return np.sqrt(widen(x))


@op("flow.rsqrt")
class Rsqrt(Unary):
    """1 / sqrt(x)"""

    def evaluate(self, x: Any) -> Any:
        return np.float32(1) / np.sqrt(widen(x))


@op("flow.sin")
class Sin(Unary):
    """Sine, radians."""

    def evaluate(self, x: Any) -> Any:
        return np.sin(widen(x))


@op("flow.cos")
class Cos(Unary):
    """Cosine, radians."""

    def evaluate(self, x: Any) -> Any:
        return np.cos(widen(x))


@op("flow.tan")
class Tan(Unary):
    """Tangent, radians."""

    def evaluate(self, x: Any) -> Any:
        return np.tan(widen(x))


@op("flow.tanh")
class Tanh(Unary):
    """Hyperbolic tangent."""

    increasing = True

    def evaluate(self, x: Any) -> Any:
        return np.tanh(widen(x))


@op("flow.sigmoid")
class Sigmoid(Unary):
    """1 / (1 + exp(-x))"""

    increasing = True
    positive = "always"

    def evaluate(self, x: Any) -> Any:
        return np.float32(1) / (np.float32(1) + np.exp(-widen(x)))


@op("flow.erf")
class Erf(Unary):
    """Error function."""

    def evaluate(self, x: Any) -> Any:
        return np.vectorize(math.erf, otypes=[np.float32])(widen(x))


@op("flow.floor")
class Floor(Unary):
    """Largest integer not above x."""

    def evaluate(self, x: Any) -> Any:
        return np.floor(widen(x))


@op("flow.ceil")
class Ceil(Unary):
    """Smallest integer not below x."""

    def evaluate(self, x: Any) -> Any:
        return np.ceil(widen(x))


@op("flow.round")
class Round(Unary):
    """Nearest integer, halves to even."""

    def evaluate(self, x: Any) -> Any:
        return np.rint(widen(x))


@op("flow.trunc")
class Trunc(Unary):
    """Integer part."""

    def evaluate(self, x: Any) -> Any:
        return np.trunc(widen(x))


@op("flow.isnan")
class IsNan(Unary):
    """Whether x is NaN."""

    makes = bool_

    def evaluate(self, x: Any) -> Any:
        return np.isnan(widen(x))


@op("flow.not")
class Not(Unary):
    """Logical negation of a bool."""

    makes = bool_

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        self.require(t.dtype == bool_, f"needs a bool operand, got {t.dtype}")
        return t

    def computes_in(self) -> DType:
        return bool_

    def evaluate(self, x: Any) -> Any:
        return np.logical_not(x)


@op("flow.cast")
class Cast(Op):
    """x as ``to``; a float cast to a narrow float is rounded to it, to nearest even."""

    x: Value
    to: DType
    role = "elementwise"
    repeats = 4

    def infer(self) -> TensorType:
        return tensor(self, self.x).with_dtype(self.to)

    def evaluate(self, x: Any) -> Any:
        return narrow(x, self.to)


@op("flow.add")
class Add(Binary):
    """a + b"""

    commutes = True
    positive = "with operands"

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.add(*alike(a, b))


@op("flow.sub")
class Sub(Binary):
    """a - b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.subtract(*alike(a, b))


@op("flow.mul")
class Mul(Binary):
    """a * b"""

    commutes = True
    positive = "with operands"

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.multiply(*alike(a, b))


@op("flow.div")
class Div(Binary):
    """a / b, always fp32"""

    positive = "with operands"

    def dtype(self, a: DType, b: DType) -> DType:
        return f32

    def evaluate(self, a: Any, b: Any) -> Any:
        return widen(a) / widen(b)


@op("flow.pow")
class Pow(Div):
    """a ** b, always fp32"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.power(widen(a), widen(b))


@op("flow.remainder")
class Remainder(Binary):
    """What is left of a / b rounded down: the sign of b, exact as in torch.remainder; integers modulo 0 give 0."""

    repeats = 21

    def evaluate(self, a: Any, b: Any) -> Any:
        a, b = alike(a, b)
        if a.dtype != np.float32:
            return np.mod(a, b)
        r = np.fmod(a, b)
        return np.where((r != 0) & ((b < 0) != (r < 0)), r + b, r)


@op("flow.fmod")
class Fmod(Binary):
    """What is left of a / b rounded to zero: the sign of a, exact as in torch.fmod; integers modulo 0 give 0."""

    repeats = 3

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.fmod(*alike(a, b))


@op("flow.floor_divide")
class FloorDivide(Binary):
    """a / b of integers rounded down; 0 where b is 0, and -2^31 / -1 wraps."""

    repeats = 20

    def dtype(self, a: DType, b: DType) -> DType:
        self.require(not a.is_float and not b.is_float, f"needs integer operands, got {a} and {b}")
        return i32

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.floor_divide(*alike(a, b))


@op("flow.hypot")
class Hypot(Binary):
    """sqrt(a * a + b * b) without overflow on the way; infinite if either is, whatever the other."""

    def dtype(self, a: DType, b: DType) -> DType:
        return f32

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.hypot(widen(a), widen(b))


@op("flow.maximum")
class Maximum(Binary):
    """The larger; NaN if either is."""

    repeats = 4
    rounds = False
    positive = "with operands"

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.maximum(*alike(a, b))


@op("flow.minimum")
class Minimum(Binary):
    """The smaller; NaN if either is."""

    repeats = 4
    rounds = False
    positive = "with operands"

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.minimum(*alike(a, b))


@op("flow.lt")
class Lt(Compare):
    """a < b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.less(*alike(a, b))


@op("flow.le")
class Le(Compare):
    """a <= b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.less_equal(*alike(a, b))


@op("flow.gt")
class Gt(Compare):
    """a > b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.greater(*alike(a, b))


@op("flow.ge")
class Ge(Compare):
    """a >= b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.greater_equal(*alike(a, b))


@op("flow.eq")
class Eq(Compare):
    """a == b"""

    repeats = 2
    commutes = True

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.equal(*alike(a, b))


@op("flow.ne")
class Ne(Compare):
    """a != b"""

    repeats = 2
    commutes = True

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.not_equal(*alike(a, b))


@op("flow.and")
class And(Logical):
    """a and b"""

    commutes = True

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.logical_and(a, b)


@op("flow.or")
class Or(Logical):
    """a or b"""

    commutes = True

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.logical_or(a, b)


@op("flow.xor")
class Xor(Logical):
    """a or b, not both"""

    commutes = True

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.logical_xor(a, b)


@op("flow.where")
class Where(Op):
    """a where cond holds, else b; broadcast."""

    cond: Value
    a: Value
    b: Value
    role = "elementwise"
    branches = True
    widens = True

    def infer(self) -> TensorType:
        c, a, b = tensor(self, self.cond), tensor(self, self.a), tensor(self, self.b)
        self.require(c.dtype == bool_, f"the condition is {c.dtype}, not bool")
        same = a.dtype if a.dtype == b.dtype == bool_ else arithmetic([a.dtype, b.dtype])
        return one_page_axis(self, same, broadcast(self, c.shape, a.shape, b.shape))

    def evaluate(self, cond: Any, a: Any, b: Any) -> Any:
        return np.where(cond, *((a, b) if a.dtype == b.dtype == np.bool_ else alike(a, b)))
