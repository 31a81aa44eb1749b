"""One emitter for each scalar op of the flow dialect: operands in, a TVM expression out. CPU and GPU share it.

Floats need care, since TVM simplifies them as if they were exact and finite: it folds ``x != x`` to false, ``x - x``,
``x * 0`` and ``0 / x`` to 0, ``(x + 1) - 1`` to ``x``, and its own max and min lose a NaN on one side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tvm_ffi import structural_equal

from vortex.codegen.narrow import round_to
from vortex.codegen.tir import (
    F32,
    I32,
    U32,
    Expr,
    T,
    bits_of,
    cast,
    differ,
    equal,
    f32,
    i32,
    is_nan,
    kind,
    tirx,
    word_of,
)
from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Op
from vortex.ir.dialects import flow
from vortex.ir.types import DType, bool_

Fold = Callable[[Expr, Expr], Expr]


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
        if isinstance(x, tirx.IntImm):
            return one if x.value else zero
        return T.Select(x, one, zero)
    return whole(x) if now == F32 else cast(to, x)


def whole(x: Expr) -> Expr:
    """fp32 ``x`` without its fraction; -2^31 for what int32 has no number for, where LLVM leaves the cast undefined."""
    return T.Select(T.And(x >= f32(-(2.0**31)), x < f32(2.0**31)), cast(I32, x), i32(-(2**31)))


def _long(x: Expr) -> Expr:
    if isinstance(x, tirx.IntImm):
        return T.uint64(int(x.value) % 2**32)
    return cast("uint64", T.bitwise_and(cast("int64", x), T.int64(2**32 - 1)))


def _wrapped(compute: Fold) -> Fold:
    """``compute`` on integers modulo 2^32, in 64 bits that never overflow.

    TVM and LLVM take for granted that 32 bits do not, signed or not. The sign comes back by exclusive or and minus, not
    by ``reinterpret``: TVM 0.27 cannot compile that of an operand that it has simplified to 0.
    """

    def run(a: Expr, b: Expr) -> Expr:
        if kind(a) == F32:
            return compute(a, b)
        low = cast("int64", T.bitwise_and(compute(_long(a), _long(b)), T.uint64(2**32 - 1)))
        return cast(I32, T.bitwise_xor(low, T.int64(2**31)) - T.int64(2**31))

    return run


def _less(a: Expr, b: Expr) -> Expr:
    if kind(a) == F32:
        return a - (_hidden(b) if _cancels(a, b) else b)
    return a + (T.uint64(2**32) - b)


def _product(a: Expr, b: Expr) -> Expr:
    return _zero_hidden(a) * _zero_hidden(b)


def _quotient(a: Expr, b: Expr) -> Expr:
    return _zero_hidden(a) / _zero_hidden(b)


def _hidden(x: Expr) -> Expr:
    """fp32 ``x`` as TVM does not see through it; compilers behind it do, and know about NaN and rounding."""
    return word_of(bits_of(x))


def _zero_hidden(x: Expr) -> Expr:
    number = x.value if isinstance(x, tirx.Cast) else x
    return _hidden(f32(0) if number is not x else x) if _is_zero(number) else x


def _is_zero(x: Expr) -> bool:
    return isinstance(x, tirx.FloatImm | tirx.IntImm) and x.value == 0


def _terms(x: Expr) -> Iterator[Expr]:
    """What TVM might find in ``x`` to subtract from: ``x`` itself and what it adds up or picks from."""
    yield x
    if isinstance(x, tirx.Add | tirx.Sub):
        yield from (*_terms(x.a), *_terms(x.b))
    elif isinstance(x, tirx.Select):
        yield from (*_terms(x.true_value), *_terms(x.false_value))


def _cancels(a: Expr, b: Expr) -> bool:
    """Whether ``a`` and ``b`` have a term in common, or a number each."""
    mine, others = list(_terms(a)), list(_terms(b))
    numbers = [any(isinstance(x, tirx.FloatImm) for x in terms) for terms in (mine, others)]
    return all(numbers) or any(structural_equal(x, y) for x in mine for y in others)


add = _wrapped(lambda a, b: a + b)
sub = _wrapped(_less)
mul = _wrapped(lambda a, b: _product(a, b) if kind(a) == F32 else a * b)


def negative(x: Expr) -> Expr:
    return x * f32(-1) if kind(x) == F32 else sub(i32(0), x)


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
    return word_of(T.bitwise_or(*(bits_of(x) for x in sides)))


def _divisor(b: Expr) -> Expr:
    """``b`` where the processor can divide by it: 0 and, beside -2^31, -1 would end the process."""
    return T.Select(T.Or(equal(b, i32(0)), equal(b, i32(-1))), i32(1), b)


def _apart(r: Expr, b: Expr, zero: Expr) -> Expr:
    """Whether ``r`` is not zero and has the other sign than ``b``."""
    return T.Or(T.And(b < zero, r > zero), T.And(b > zero, r < zero))


def _certain(b: Expr) -> bool:
    return isinstance(b, tirx.IntImm) and int(b.value) > 0


def floor_mod(a: Expr, b: Expr) -> Expr:
    """What is left of a / b rounded down; for integers 0 where b is 0."""
    if kind(a) == F32:
        r = T.call_pure_extern(F32, "fmodf", a, b)
        return T.Select(_apart(r, b, f32(0)), r + b, r)
    if _certain(b):
        return T.floormod(a, b)
    d = _divisor(b)
    r = T.truncmod(a, d)
    return T.Select(_apart(r, d, i32(0)), add(r, d), r)


def trunc_mod(a: Expr, b: Expr) -> Expr:
    """What is left of a / b rounded to zero; for integers 0 where b is 0."""
    if kind(a) == F32:
        return T.call_pure_extern(F32, "fmodf", a, b)
    return T.truncmod(a, b if _certain(b) else _divisor(b))


def floor_div(a: Expr, b: Expr) -> Expr:
    """a / b rounded down; 0 where b is 0."""
    if _certain(b):
        return T.floordiv(a, b)
    d = _divisor(b)
    q, r = T.truncdiv(a, d), T.truncmod(a, d)
    down = T.Select(_apart(r, d, i32(0)), q - i32(1), q)
    return T.Select(equal(b, i32(0)), i32(0), T.Select(equal(b, i32(-1)), negative(a), down))


def _libm(name: str) -> Callable[..., Expr]:
    """The C library's function of that name, which a CPU's libm and CUDA both have."""
    return lambda *x: T.call_pure_extern(F32, name, *x)


def absolute(x: Expr) -> Expr:
    if kind(x) == I32:
        return T.Select(x < i32(0), negative(x), x)
    return word_of(T.bitwise_and(bits_of(x), T.uint32(0x7FFFFFFF)))


def invert(x: Expr) -> Expr:
    """Not x. TVM turns ``not a > b`` into ``a <= b``, which is wrong for NaN: so the bool is looked at as a number."""
    return equal(convert(x, I32), i32(0))


def same(a: Expr, b: Expr) -> Expr:
    """a == b, false for NaN also where TVM sees that both are one expression and folds it to true."""
    return T.And(equal(a, b), invert(is_nan(a))) if kind(a) == F32 else equal(a, b)


def comes_before(a: Expr, b: Expr, first: Expr, *, descending: bool) -> Expr:
    """Whether ``a`` is sorted before ``b``; where they are equal, or both NaN, whether it is ``first``."""
    ahead = a > b if descending else a < b
    if kind(a) != F32:
        return T.Or(ahead, T.And(equal(a, b), first))
    odd, other = is_nan(a), is_nan(b)
    only = T.And(odd, invert(other)) if descending else T.And(other, invert(odd))
    return T.Or(T.Or(ahead, only), T.And(T.Or(equal(a, b), T.And(odd, other)), first))


Emitter = Callable[[Any, list[Expr]], Expr]
"""The op and the elements of its operands give one element of its result."""
EMITTERS: dict[str, Emitter] = {}
"""By the name that an elementwise op's class gives as its ``emitter``; whoever declares an op adds it here."""


def emitter(name: str) -> Callable[[Emitter], Emitter]:
    """Register the emitter of that name; operands reach it as they are read, each in its own computing type."""

    def register(emit: Emitter) -> Emitter:
        assert name not in EMITTERS, f"emitter {name} is registered twice"
        EMITTERS[name] = emit
        return emit

    return register


def _computed(name: str, emit: Callable[..., Expr]) -> None:
    """Register an emitter that gets its operands in the type the op computes in."""

    @emitter(name)
    def run(o: flow.Unary | flow.Binary, operands: list[Expr]) -> Expr:
        kind = number_type(o.computes_in())
        return emit(*(convert(x, kind) for x in operands))


for _name, _emit in {
    "flow.neg": negative,
    "flow.abs": absolute,
    "flow.exp": T.exp,
    "flow.log": T.log,
    "flow.log2": T.log2,
    "flow.log10": T.log10,
    "flow.log1p": _libm("log1pf"),
    "flow.exp2": _libm("exp2f"),
    "flow.expm1": _libm("expm1f"),
    "flow.sqrt": T.sqrt,
    "flow.rsqrt": lambda x: f32(1) / T.sqrt(x),
    "flow.sin": T.sin,
    "flow.cos": T.cos,
    "flow.tan": _libm("tanf"),
    "flow.tanh": _libm("tanhf"),
    "flow.sigmoid": lambda x: f32(1) / (f32(1) + T.exp(x * f32(-1))),
    "flow.erf": T.erf,
    "flow.floor": T.floor,
    "flow.ceil": T.ceil,
    "flow.round": T.nearbyint,
    "flow.trunc": T.trunc,
    "flow.isnan": is_nan,
    "flow.not": invert,
    "flow.add": add,
    "flow.sub": sub,
    "flow.mul": mul,
    "flow.div": _quotient,
    "flow.pow": T.pow,
    "flow.remainder": floor_mod,
    "flow.fmod": trunc_mod,
    "flow.floor_divide": floor_div,
    "flow.hypot": _libm("hypotf"),
    "flow.maximum": maximum,
    "flow.minimum": minimum,
    "flow.lt": lambda a, b: a < b,
    "flow.le": lambda a, b: a <= b,
    "flow.gt": lambda a, b: a > b,
    "flow.ge": lambda a, b: a >= b,
    "flow.eq": same,
    "flow.ne": lambda a, b: invert(same(a, b)),
    "flow.and": T.And,
    "flow.or": T.Or,
    "flow.xor": lambda a, b: differ(convert(a, I32), convert(b, I32)),
    "flow.differing_bits": lambda a, b: cast(I32, tirx.popcount(cast(U32, T.bitwise_xor(a, b)))),
}.items():
    _computed(_name, _emit)


@emitter("flow.where")
def _where(o: flow.Where, operands: list[Expr]) -> Expr:
    out = number_type(flow.tensor(o, o.value).dtype)
    return T.Select(operands[0], convert(operands[1], out), convert(operands[2], out))


@emitter("flow.cast")
def _cast(o: flow.Cast, operands: list[Expr]) -> Expr:
    return round_to(convert(operands[0], number_type(o.to)), o.to)


def emit_scalar(o: Op, operands: list[Expr]) -> Expr:
    """The expression of one element of an elementwise op's result from its operands' elements."""
    emit = EMITTERS.get(o.emitter)
    if emit is None:
        raise NOT_EMITTABLE.at(o.loc, why=f"{o.name} names no emitter of codegen/scalar.py", hint="register it there")
    return emit(o, operands)


def fold_of(o: Op, dtype: str) -> tuple[Expr, Callable[[Expr, Expr], Expr]]:
    """What a reduction starts from and how it takes in an element, in the computing type ``dtype``."""
    how = o.kind if isinstance(o, flow.Scan) else o.folds
    is_float = dtype == F32
    if how == "sum":
        return (f32(0) if is_float else i32(0)), add
    if how == "prod":
        return (f32(1) if is_float else i32(1)), mul
    if how == "max":
        return (f32(float("-inf")) if is_float else i32(-(2**31))), maximum
    return (f32(float("inf")) if is_float else i32(2**31 - 1)), minimum
