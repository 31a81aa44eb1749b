"""The mass of a page as a whole number, so that sums of it know no order: :mod:`vortex.ir.ranking` has the definition.

Masses are read off the keys of selection: that of a page whose mass is not negative has its top bit set, and below it
the bits of the mass. A key of 0 stands for no page, and has none.
"""

from __future__ import annotations

from vortex.codegen.tir import I64, U32, Expr, T, cast, let
from vortex.ir.ranking import MASS_BITS, SHARE_BITS

FRACTION_BITS = 23
"""Of an fp32 number, its leading 1 not counted."""
FIRST = 0x80000000
"""The key of a mass of 0."""


def counted(mass: Expr) -> Expr:
    """A mass as it counts: what is negative, and NaN, is 0."""
    return T.Select(mass > T.float32(0), mass, T.float32(0))


def exponent(key: Expr) -> Expr:
    """The biased exponent of the mass of a key, that of the least normal number for smaller ones; uint32."""
    biased = T.shift_right(T.bitwise_and(key, T.uint32(FIRST - 1)), T.uint32(FRACTION_BITS))
    return T.max(biased, T.uint32(1))


def whole(key: Expr, top: Expr) -> Expr:
    """The mass of a key as int64, where the largest mass of the row has exponent ``top``."""
    bits = T.bitwise_and(key, T.uint32(FIRST - 1))
    one = T.Select(bits >= T.uint32(1 << FRACTION_BITS), T.uint32(1 << FRACTION_BITS), T.uint32(0))
    digits = T.bitwise_or(T.bitwise_and(bits, T.uint32((1 << FRACTION_BITS) - 1)), one)
    up = T.shift_left(digits, T.uint32(MASS_BITS - FRACTION_BITS - 1))
    return cast(I64, T.shift_right(up, T.min(top - exponent(key), T.uint32(MASS_BITS))))


def needed(total: Expr, share: int) -> Expr:
    """The mass that is ``share`` (in 2^-24) of ``total``, rounded up; neither product leaves 64 bits."""
    low = T.bitwise_and(total, T.int64(2**SHARE_BITS - 1))
    below = T.shift_right(low * T.int64(share) + T.int64(2**SHARE_BITS - 1), T.int64(SHARE_BITS))
    return let("needed", T.shift_right(total, T.int64(SHARE_BITS)) * T.int64(share) + below)


def trial_bit(bit: Expr) -> Expr:
    """Bit 30 - ``bit`` of a key; the search for one starts at :data:`FIRST`."""
    return T.shift_left(T.uint32(1), cast(U32, 30 - bit))


def taken(above: Expr, mass_above: Expr, need: Expr, each: Expr) -> Expr:
    """How many pages reach ``need``: those ``above`` the last key, and of those that have it, each with mass ``each``,
    as many as are missing. At least 1.
    """
    each = T.max(each, T.int64(1))
    missing = T.max(need - mass_above, T.int64(0))
    return T.max(above + cast("int32", T.truncdiv(missing + each - T.int64(1), each)), T.int32(1))
