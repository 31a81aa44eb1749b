"""Fields of 8 and 4 bits as pairs of f16 numbers in registers, which is exact: what tensor cores are given.

A word of the field becomes ``16 / bits`` words, in the order in which that takes the fewest instructions:

    word         element 0, 1 | 2, 3                        fp8_e4m3, int8
                         0, 4 | 1, 5 | 2, 6 | 3, 7          int4

The bits of an f16 number from 1024 on are 0x6400 plus what is above 1024. So the bytes of codes, with the sign bit
flipped, are put behind that by byte permutations, and one subtraction leaves the code:

    int8   0x64 | code + 128                    1024 + 128 + code        - 1152

Nibbles are left where they are, as the fraction of an f16 number below the normal ones, which tensor cores multiply
as exactly as others. What becomes of them is made up for outside the loop (:class:`Nibbles`):

    int4   0 | code + 8                         2^-24 (code + 8)
           0 | code + 8 | 0000                  2^-20 (code + 8)         every second pair

An odd nibble stays where it is in its byte, and the other two nibbles of each half are shifted down by 8 together.
"""

from __future__ import annotations

from collections.abc import Sequence

from vortex.codegen.cuda.ptx import from_e4m3, masked_xor, permute, quotient, remainder, subtract_pair
from vortex.codegen.tir import Expr, T, equal, f32, i32, let
from vortex.ir.types import DType, fp8_e4m3, int4, int8


class Nibbles:
    """What the pairs of ``int4`` are: ``UNIT * (code + OFFSET)``, and every second pair ``ODD`` times as much."""

    UNIT, OFFSET, ODD = 2.0**-24, 8, 16


def first_of_pair(dtype: DType, n: Expr) -> Expr:
    """The first element of pair ``n``, counted over a lane's words; the second follows :func:`pair_step` later."""
    return quotient(n, i32(4)) * 8 + remainder(n, i32(4)) if dtype == int4 else n * 2


def pair_step(dtype: DType) -> int:
    """How far apart the elements of a pair are."""
    return 4 if dtype == int4 else 1


def opposite(dtype: DType, n: Expr, x: Expr) -> Expr:
    """What the elements of pair ``n`` are multiplied by where ``x`` is meant: those of ``int4`` differ in size."""
    return T.Select(equal(remainder(n, i32(2)), i32(1)), x * f32(1 / Nibbles.ODD), x) if dtype == int4 else x


def to_f16(out: Sequence[Expr], word: Expr, dtype: DType) -> None:
    """Make f16 pairs of one word of a field: two of ``fp8_e4m3`` and ``int8``, four of ``int4``."""
    if dtype == fp8_e4m3:
        from_e4m3(out[0], out[1], word)
    elif dtype == int8:
        unsigned = let("unsigned", T.bitwise_xor(word, T.uint32(0x80808080)))
        for pair, order in zip(out, (0x4140, 0x4342), strict=True):
            permute(pair, unsigned, order, 0x64646464)
            subtract_pair(pair, pair, 0x6480)
    else:
        assert dtype == int4
        later = let("later", T.shift_right(word, T.uint32(8)))
        for n, nibbles in enumerate((word, word, later, later)):
            mask, sign = (0x00F000F0, 0x00800080) if n % 2 else (0x000F000F, 0x00080008)
            masked_xor(out[n], nibbles, mask, sign)
