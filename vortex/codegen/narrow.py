"""Between storage types and the types of arithmetic. CPU and GPU share it: one rounding, bit for bit that of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vortex.codegen.tir import F32, I32, U32, Expr, T, cast, differ, equal, f32, i32, is_nan, kind, literal
from vortex.ir import numerics
from vortex.ir.types import MOST_CODE, DType, bf16, bool_, f16, fp8_e4m3, int4, int8, uint1
from vortex.ir.types import i32 as i32_type

STORAGE = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "fp8_e4m3": "uint8", "i32": "int32", "i64": "int64",
    "bool": "int32", "int8": "int8", "int4": "uint8", "uint1": "uint8",
}  # fmt: skip
"""The TVM type of a buffer. fp8 travels as its bits, and bools on chip as int32: vectors of either are fragile. Types
of less than a byte travel as the bytes that they are packed in."""

SIGN = 0x80000000
MAGNITUDE = 0x7FFFFFFF


def widen(stored: Expr, dtype: DType) -> Expr:
    """An element read from memory, in the type it is computed in; of packed types it is what :func:`unpacked` gives."""
    if dtype == fp8_e4m3:
        return _from_fp8_e4m3(stored)
    if dtype == bool_:
        return differ(stored, T.int32(0))
    return cast(F32, stored) if dtype.is_float else cast("int32", stored)


def narrow(x: Expr, dtype: DType) -> Expr:
    """``x`` as it is stored: integers and bools as the number they are, to nearest even; fp8 is clamped to +-448."""
    if dtype.is_float and (number := literal(x)) is not None:
        return stored_constant(number, dtype)
    if dtype.is_float and kind(x) != F32:
        x = T.Select(x, f32(1), f32(0)) if kind(x) == "bool" else cast(F32, x)
    if dtype == int8:
        return cast("int8", code(x, dtype))
    assert dtype not in (int4, uint1), "elements that share a byte are stored together, by packed()"
    if dtype == fp8_e4m3:
        return _to_fp8_e4m3(x)
    if dtype == bool_:
        return T.Select(x, T.int32(1), T.int32(0))
    return cast(STORAGE[dtype.name], round_to(x, dtype))


def stored_constant(number: float, dtype: DType) -> Expr:
    """A number as :func:`narrow` stores it, made without arithmetic: TVM writes no bits of a constant in CUDA C++."""
    kept = float(numerics.narrow(number, dtype))
    if dtype != fp8_e4m3:
        return cast(STORAGE[dtype.name], f32(kept))
    if math.isnan(kept):
        return T.uint8(0x7F)
    sign = 0x80 if math.copysign(1, kept) < 0 else 0
    return T.uint8(sign | list(numerics.unpack(bytes(range(127)), fp8_e4m3)).index(abs(kept)))


def round_to(x: Expr, dtype: DType) -> Expr:
    """fp32 ``x`` with only the bits that ``dtype`` can hold; other types pass through."""
    if dtype.is_float and (number := literal(x)) is not None:
        return f32(float(numerics.narrow(number, dtype)))
    if dtype == bf16:
        return _round_bf16(x)
    if dtype == f16:
        return cast(F32, cast("float16", x))
    if dtype == fp8_e4m3:
        return _from_fp8_e4m3(_to_fp8_e4m3(x))
    if dtype in MOST_CODE or dtype == uint1:
        return code(x, dtype)
    return cast(I32, x) if dtype == i32_type else x


def code(x: Expr, dtype: DType) -> Expr:
    """``x`` as a code of ``dtype``, int32: clamped to its range, then to nearest even, NaN to 0; a bit is x != 0."""
    if dtype == uint1:
        if kind(x) != "bool":
            x = differ(x, i32(0)) if kind(x) == I32 else T.Or(differ(x, f32(0)), is_nan(x))
        return T.Select(x, i32(1), i32(0))
    most = MOST_CODE[dtype]
    if (number := literal(x)) is not None:
        return i32(int(numerics.narrow(number, dtype)))
    if kind(x) == "bool":
        return T.Select(x, i32(1), i32(0))
    low, high = (f32(-most), f32(most)) if kind(x) == F32 else (i32(-most), i32(most))
    inside = T.Select(x > high, high, T.Select(x < low, low, x))
    if kind(x) != F32:
        return inside
    # adding 1.5 * 2^23 leaves whole numbers in the low bits, rounded to nearest even
    whole = T.Select(is_nan(x), f32(0), inside) + f32(1.5 * 2.0**23)
    return T.reinterpret(I32, whole) - i32(0x4B400000)


def packed(codes: Sequence[Expr], dtype: DType) -> Expr:
    """The byte that holds these codes, the first in the lowest bits."""
    assert len(codes) == dtype.per_byte > 1
    byte: Expr = i32(0)
    for k, x in enumerate(codes):
        byte = T.bitwise_or(byte, T.shift_left(T.bitwise_and(x, i32(2**dtype.bits - 1)), i32(k * dtype.bits)))
    return cast("uint8", byte)


def unpacked(byte: Expr, k: Expr, dtype: DType) -> Expr:
    """Code ``k`` of a byte (of a word, of as many as it holds), int32."""
    word = cast(U32, byte)
    at = T.uint32(int(k) * dtype.bits) if isinstance(k, int) else cast(U32, k * dtype.bits)
    bits = T.bitwise_and(T.shift_right(word, at), T.uint32(2**dtype.bits - 1))
    if dtype == uint1:
        return cast(I32, bits)
    # the highest bit of a code is its sign
    sign = 2 ** (dtype.bits - 1)
    return cast(I32, T.bitwise_xor(bits, T.uint32(sign))) - i32(sign)


def _round_bf16(x: Expr) -> Expr:
    # Cast(f32, Cast(bf16, x)) is folded away by LLVM's lowering, so the rounding is done on the bits
    bits = T.reinterpret(U32, x)
    odd = T.bitwise_and(T.shift_right(bits, T.uint32(16)), T.uint32(1))
    up = T.bitwise_and(bits + T.uint32(0x7FFF) + odd, T.uint32(0xFFFF0000))
    return T.reinterpret(F32, T.Select(is_nan(x), T.uint32(0x7FC00000), up))


def _to_fp8_e4m3(x: Expr) -> Expr:
    bits = T.reinterpret(U32, x)
    sign = T.bitwise_and(T.shift_right(bits, T.uint32(24)), T.uint32(0x80))
    size = T.reinterpret(F32, T.bitwise_and(bits, T.uint32(MAGNITUDE)))
    size = T.Select(size > f32(448), f32(448), size)
    # below 2^-6 the spacing is 2^-9: adding 2^14 leaves exactly those bits, rounded to nearest even
    tiny = T.reinterpret(U32, size + f32(2.0**14)) - T.uint32(0x46800000)
    large = T.reinterpret(U32, size)
    odd = T.bitwise_and(T.shift_right(large, T.uint32(20)), T.uint32(1))
    rounded = T.shift_right(large + T.uint32(0x7FFFF) + odd, T.uint32(20)) - T.uint32(120 << 3)
    magnitude = T.Select(size < f32(2.0**-6), tiny, rounded)
    return cast("uint8", T.bitwise_or(sign, T.Select(is_nan(x), T.uint32(0x7F), magnitude)))


def _from_fp8_e4m3(stored: Expr) -> Expr:
    bits = cast(U32, stored)
    size = T.bitwise_and(bits, T.uint32(0x7F))
    sign = T.shift_left(T.bitwise_and(bits, T.uint32(0x80)), T.uint32(24))
    normal = T.reinterpret(F32, T.shift_left(size, T.uint32(20)) + T.uint32(120 << 23))
    tiny = cast(F32, size) * f32(2.0**-9)
    value = T.Select(size < T.uint32(8), tiny, normal)
    value = T.Select(equal(size, T.uint32(0x7F)), f32(float("nan")), value)
    return T.reinterpret(F32, T.bitwise_or(T.reinterpret(U32, value), sign))
