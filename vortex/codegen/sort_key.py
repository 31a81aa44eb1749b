"""The order of selection as an order of unsigned integers, which is what the top-k of every target compares."""

from __future__ import annotations

from vortex.codegen.tir import Expr, T, bits_of, equal, is_nan


def sortable(score: Expr) -> Expr:
    """An fp32 score as uint32 in the order of selection: +inf > finite > -inf > NaN, -0 equal to +0; NaN is 0."""
    bits = bits_of(T.Select(equal(score, T.float32(0)), T.float32(0), score))
    flipped = T.Select(bits >= T.uint32(0x80000000), T.bitwise_not(bits), T.bitwise_or(bits, T.uint32(0x80000000)))
    return T.Select(is_nan(score), T.uint32(0), flipped)
