"""Fields of 8 and 4 bits as pairs of f16 numbers in registers, which is exact: what tensor cores are given.

A word of the field becomes ``16 / bits`` words, in the order in which that takes the fewest instructions:

    word         element 0, 1 | 2, 3                        fp8_e4m3, int8
                         0, 4 | 1, 5 | 2, 6 | 3, 7          int4

The bits of an f16 number from 1024 on are 0x6400 plus what is above 1024. So the bytes or nibbles of codes, with the
sign bit flipped, are put behind that by bit operations, and one subtraction leaves the code:

    int8   0x64 | code + 128                    1024 + 128 + code        - 1152
    int4   0x640 | code + 8                     1024 + 8 + code          - 1032
           0x64 | code + 8 | 0                  1024 + 128 + 16 code     / 16 - 72

An odd nibble stays where it is in its byte, and the other two nibbles of each half are shifted down by 8 together.
"""

from __future__ import annotations

from collections.abc import Sequence

from vortex.codegen.cuda.ptx import from_e4m3, masked_xor, multiply_pair, permute, quotient, remainder, subtract_pair
from vortex.codegen.tir import Expr, T, i32, let
from vortex.ir.types import DType, fp8_e4m3, int4, int8


def first_of_pair(dtype: DType, n: Expr) -> Expr:
    """The first element of pair ``n``, counted over a lane's words; the second follows :func:`pair_step` later."""
    return quotient(n, i32(4)) * 8 + remainder(n, i32(4)) if dtype == int4 else n * 2


def pair_step(dtype: DType) -> int:
    """How far apart the elements of a pair are."""
    return 4 if dtype == int4 else 1


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
            mask, over = (0x00F000F0, 0x64806480) if n % 2 else (0x000F000F, 0x64086408)
            masked_xor(out[n], nibbles, mask, over)
            if n % 2:
                multiply_pair(out[n], out[n], 0x2C00, 0xD480)
            else:
                subtract_pair(out[n], out[n], 0x6408)
