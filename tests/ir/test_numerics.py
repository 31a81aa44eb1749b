"""Narrowing agrees with torch bit for bit; storage bytes are read as torch writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vortex.ir.numerics import narrow, unpack
from vortex.ir.types import DType, bf16, bool_, f16, f32, fp8_e4m3, i32, i64

TORCH = {bf16: torch.bfloat16, f16: torch.float16, fp8_e4m3: torch.float8_e4m3fn}


def same(a: np.ndarray, b: np.ndarray) -> None:
    """Equal bits, any NaN for any NaN."""
    assert a.dtype == b.dtype == np.float32
    nan = np.isnan(a)
    np.testing.assert_array_equal(nan, np.isnan(b))
    np.testing.assert_array_equal(a[~nan].view(np.uint32), b[~nan].view(np.uint32))


def by_torch(x: np.ndarray, dtype: DType) -> np.ndarray:
    t = torch.from_numpy(x.copy())
    if dtype == fp8_e4m3:
        t = t.clamp(-448, 448)
    return t.to(TORCH[dtype]).float().numpy()


def inputs() -> np.ndarray:
    rng = np.random.default_rng(3)
    anything = rng.integers(0, 2**32, 1 << 20, dtype=np.uint32)
    near = np.concatenate([rng.normal(size=1 << 18), rng.uniform(-500, 500, 1 << 18), rng.normal(size=1 << 16) * 1e-3])
    # the upper half of the bits, and what lies on, just under and just over the halfway to the next
    stored = np.arange(1 << 16, dtype=np.uint32) << 16
    halves = np.concatenate([stored | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1000, 0x0FFF)])
    return np.concatenate([anything.view(np.float32), near.astype(np.float32), halves.view(np.float32)])


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_narrow_is_torchs(dtype: DType) -> None:
    x = inputs()
    same(narrow(x, dtype), by_torch(x, dtype))


@pytest.mark.parametrize("dtype", TORCH, ids=str)
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_of_every_16_bit_number(dtype: DType, source: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(source).float().numpy()
    same(narrow(every, dtype), by_torch(every, dtype))


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_halfway_between_neighbours(dtype: DType) -> None:
    bits = torch.arange(2**8 if dtype.bytes == 1 else 2**16, dtype=torch.int32)
    store = bits.to(torch.uint8 if dtype.bytes == 1 else torch.uint16)
    every = store.view(TORCH[dtype]).double().numpy()
    finite = np.unique(every[np.isfinite(every)])
    middles = ((finite[:-1] + finite[1:]) / 2).astype(np.float32)
    around = np.concatenate(
        [middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, -np.float32(np.inf))]
    )
    same(narrow(around, dtype), by_torch(around, dtype))


def test_scalars_and_empty() -> None:
    for dtype in (f32, *TORCH):
        assert narrow(np.float32(1.5), dtype).shape == ()
        assert float(narrow(np.float32(1.5), dtype)) == 1.5
        assert narrow(np.zeros((0, 3), np.float32), dtype).shape == (0, 3)


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_unpack_reads_what_torch_stores(dtype: DType) -> None:
    codes = np.arange(2 ** (8 * dtype.bytes)).astype(np.uint8 if dtype.bytes == 1 else np.uint16)
    same(unpack(codes.tobytes(), dtype), torch.from_numpy(codes).view(TORCH[dtype]).float().numpy())


def test_unpack_of_other_types() -> None:
    assert unpack(np.array([1, -2], "<i8").tobytes(), i64).tolist() == [1, -2]
    assert unpack(np.array([1, -2], "<i4").tobytes(), i32).dtype == np.int32
    assert unpack(bytes([0, 1, 2]), bool_).tolist() == [False, True, True]
    assert unpack(np.array([0.1], "<f4").tobytes(), f32)[0] == np.float32(0.1)
