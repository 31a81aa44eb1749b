"""max and min on a GPU, where they are one instruction that keeps NaN, and operands that are computed once."""

from __future__ import annotations

from collections.abc import Callable

from vortex.codegen.cuda.ptx import ptx
from vortex.codegen.scalar import fold_of, maximum, minimum
from vortex.codegen.tir import F32, Expr, T, kind, let, local, tirx
from vortex.ir.core import Op

Take = Callable[[Expr, Expr], Expr]


def larger(a: Expr, b: Expr) -> Expr:
    """The larger; NaN if either is. Emits a statement, so it belongs where the operands may be evaluated."""
    return _instruction("max", a, b) if kind(a) == F32 else T.max(a, b)


def smaller(a: Expr, b: Expr) -> Expr:
    """The smaller; NaN if either is."""
    return _instruction("min", a, b) if kind(a) == F32 else T.min(a, b)


def _instruction(name: str, a: Expr, b: Expr) -> Expr:
    out = local(f"{name}imum", 2)
    ptx(f"{name}.NaN.f32", out[0], a, b)
    return out[0]


def fold_on_gpu(o: Op, dtype: str) -> tuple[Expr, Take]:
    """:func:`vortex.codegen.scalar.fold_of` with this module's max and min."""
    start, take = fold_of(o, dtype)
    return start, larger if take is maximum else smaller if take is minimum else take


def once(x: Expr, name: str = "x") -> Expr:
    """``x`` computed here, however often it is used from here on."""
    plain = isinstance(x, tirx.Var | tirx.IntImm | tirx.FloatImm)
    return x if plain else let(name, x)
