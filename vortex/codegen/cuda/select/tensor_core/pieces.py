"""Computed numbers of the row as sums of numbers that tensor cores take, and the sums of their products as one again.

Where a computed operand in bf16 has one or two columns, its three pieces stand ``side_by_side`` in columns of their
own, column ``2 piece + column``, and are added up over the members; with up to four columns in f16 the two pieces are
columns ``4 piece + column``, and each member is left with one of its two rows. Otherwise each piece is a fragment of
its own for the same columns: the sums of the first piece are kept apart from those of the others, which are much
smaller, but for fields that are never infinite and have two pieces.
"""

from __future__ import annotations

from vortex.codegen.cuda.ptx import TILE_TYPES
from vortex.codegen.tir import F32, U32, Expr, T, differ, let

HIGH = {"bfloat16": 0xFFFF0000, "float16": 0xFFFFE000}
"""The bits of an fp32 number that are a number of the type, if its exponent is in range."""

assert set(TILE_TYPES) == set(HIGH) == {"bfloat16", "float16"}


def truncated(x: Expr, core: str) -> Expr:
    """The upper bits of an fp32 number: a number of the type, and what is left of ``x`` is exact."""
    return T.reinterpret(F32, T.bitwise_and(T.reinterpret(U32, x), T.uint32(HIGH[core])))


def finite(x: Expr) -> Expr:
    """Whether a number is neither infinite nor NaN."""
    exponent = T.bitwise_and(T.reinterpret(U32, x), T.uint32(0x7F800000))
    return differ(exponent, T.uint32(0x7F800000))


def joined(first: Expr, rest: Expr) -> Expr:
    """The sum of what the pieces gave; where that of the first is infinite or NaN, it is the result."""
    return let("joined", T.Select(finite(first), first + rest, first))
