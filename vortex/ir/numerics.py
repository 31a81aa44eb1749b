"""Storage rounding in numpy: what a value becomes when it is kept in a narrower type."""

from __future__ import annotations

from typing import Any

import numpy as np

from vortex.ir.types import MOST_CODE, DType, bf16, bool_, f16, f32, fp8_e4m3, i32, i64, int8, uint1

FP8_MAX = 448.0


def widen(x: Any) -> Any:
    """``x`` as fp32, the type of all arithmetic."""
    return np.asarray(x).astype(np.float32, copy=False)


def narrow(x: Any, dtype: DType) -> Any:
    """``x`` rounded to ``dtype`` (to nearest even; fp8 clamped to +-448, codes to their range first), floats held as
    fp32, integers as int32. NaN is code 0.

    A float goes to an integer without its fraction; -2^31 stands for what int32 has no number for, as on the CPUs that
    torch runs on.
    """
    x = np.asarray(x)
    if dtype == f32:
        return widen(x)
    if dtype == bf16:
        return _bf16(widen(x))
    if dtype == f16:
        with np.errstate(over="ignore"):
            return widen(x).astype(np.float16).astype(np.float32)
    if dtype == fp8_e4m3:
        return _fp8_e4m3(widen(x))
    if dtype == bool_:
        return x != 0
    if dtype == uint1:
        return (x != 0).astype(np.int32)
    if dtype in MOST_CODE:
        most = MOST_CODE[dtype]
        codes = np.rint(np.clip(np.where(np.isnan(x), 0, x), -most, most)) if x.dtype.kind == "f" else x
        return np.clip(codes, -most, most).astype(np.int32)
    assert dtype in (i32, i64)
    if x.dtype.kind == "f":
        inside = (x >= -(2.0**31)) & (x < 2.0**31)
        return np.where(inside, np.where(inside, x, 0).astype(np.int32), np.int32(-(2**31)))
    return x.astype(np.int32)


def _bf16(x: Any) -> Any:
    """In one array that each step works on: pools are large, and fresh memory costs more than the arithmetic."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    made = bits >> np.uint32(16)
    made &= np.uint32(1)
    made += np.uint32(0x7FFF)
    made += bits
    made &= np.uint32(0xFFFF0000)
    rounded = made.view(np.float32).reshape(x.shape)
    rounded[np.isnan(x)] = np.nan
    return rounded


def _fp8_e4m3(x: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        clamped = np.clip(x, -FP8_MAX, FP8_MAX)
        exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(clamped), np.float32(2.0**-40)))), -6.0)
        step = np.exp2(exponent - 3).astype(np.float32)
        return np.where(np.isnan(x), x, np.clip(np.rint(clamped / step) * step, -FP8_MAX, FP8_MAX)).astype(np.float32)


_PACKED = {f32: "<f4", f16: "<f2", bf16: "<u2", fp8_e4m3: "u1", i32: "<i4", i64: "<i8", bool_: "u1", int8: "i1"}


def unpack(data: bytes, dtype: DType) -> Any:
    """The numbers stored in ``data`` (little-endian), as the interpreters hold them: fp32, int32 or bool."""
    raw = np.frombuffer(data, _PACKED[dtype])
    if dtype == bf16:
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == fp8_e4m3:
        return _FP8_VALUES[raw]
    if dtype == bool_:
        return raw != 0
    return raw.astype(np.float32 if dtype.is_float else np.int32)


def _fp8_values() -> Any:
    codes = np.arange(128)
    exponent, fraction = codes >> 3, (codes & 7) / 8
    values = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - 7), fraction * 2.0**-6)
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_FP8_VALUES = _fp8_values()


def words_of_bits(x: Any) -> Any:
    """Bits ``[.., n]``, zero or not, as int32 words ``[.., ceil(n / 32)]``: element i is bit i % 32 of word i // 32."""
    x = np.asarray(x) != 0
    padded = np.zeros((*x.shape[:-1], -(-x.shape[-1] // 32) * 32), np.uint8)
    padded[..., : x.shape[-1]] = x
    return np.ascontiguousarray(np.packbits(padded, axis=-1, bitorder="little")).view("<i4").astype(np.int32)
