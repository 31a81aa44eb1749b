"""Loads of several 32-bit words at once, and the elements that are packed in a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vortex.codegen.narrow import unpacked
from vortex.codegen.tir import F32, I32, Expr, T, cast
from vortex.ir.types import DType, bf16, fp8_e4m3, i32, int4, int8
from vortex.ir.types import f32 as f32_type


@contextmanager
def vector(words: int) -> Iterator[Expr]:
    """The index of each word of one load."""
    if words == 1:
        yield T.int64(0)
        return
    with T.vectorized(0, words) as w:
        yield cast("int64", w)


def unpack(word: Expr, k: Expr | int, dtype: DType) -> Expr:
    """Element ``k`` of a register of packed elements: floats widened to fp32, of fp8 its byte; codes as int32.

    bit     31        24        16         8         0
    f32     | element 0                              |
    16 bits | element 1         | element 0          |
    fp8     | element 3 | el. 2 | el. 1  | element 0 |
    int8    | element 3 | el. 2 | el. 1  | element 0 |
    int4    | el. 7 | 6 | 5 | 4 | 3 | 2 | 1 | el. 0  |
    i32     | element 0                              |
    """
    if dtype == i32:
        return T.reinterpret(I32, word)
    if dtype in (int8, int4):
        return unpacked(word, k, dtype)
    if dtype == f32_type:
        return T.reinterpret(F32, word)
    if dtype == fp8_e4m3:
        return cast("uint8", T.bitwise_and(T.shift_right(word, T.uint32(8 * int(k))), T.uint32(0xFF)))
    if dtype == bf16:
        high = T.bitwise_and(word, T.uint32(0xFFFF0000)) if k else T.shift_left(word, T.uint32(16))
        return T.reinterpret(F32, high)
    half = T.shift_right(word, T.uint32(16)) if k else T.bitwise_and(word, T.uint32(0xFFFF))
    return T.reinterpret("float16", T.Cast("uint16", half))
