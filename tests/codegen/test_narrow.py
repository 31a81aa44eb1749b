"""The one narrowing emitter, compiled: bit for bit what torch makes of every number that matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("tvm")

from tvm.script.ir_builder import IRBuilder

from vortex.codegen.build.llvm import build_library, detect_mcpu
from vortex.codegen.emit import parse_tir
from vortex.codegen.narrow import STORAGE, narrow, round_to, widen
from vortex.codegen.tir import T, lanes, loop, put, tirx
from vortex.ir.types import DTYPES

NARROW = {"bf16": torch.bfloat16, "f16": torch.float16, "fp8_e4m3": torch.float8_e4m3fn}
WIDTH = 16


def function(name: str) -> Any:
    """Stores x narrowed, x rounded in place, and what is read back from the store."""
    dtype = DTYPES[name]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(f"narrow_{name}")
        n = tirx.Var("n", "int32")
        x = T.arg("x", T.Buffer((n, WIDTH), "float32", align=4))
        stored = T.arg("stored", T.Buffer((n, WIDTH), STORAGE[name], align=1))
        rounded = T.arg("rounded", T.Buffer((n, WIDTH), "float32", align=4))
        wide = T.arg("wide", T.Buffer((n, WIDTH), "float32", align=4))
        with loop("i", n) as i, lanes(WIDTH) as lane:
            put(stored, narrow(x[i, lane], dtype), i, lane)
            put(rounded, round_to(x[i, lane], dtype), i, lane)
            put(wide, widen(stored[i, lane], dtype), i, lane)
    return parse_tir(str(builder.get().script()), name)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import tvm_ffi

    out = tmp_path_factory.mktemp("narrow") / "narrow.so"
    build_library({f"narrow_{n}": function(n) for n in NARROW}, detect_mcpu(), Path(out))
    return tvm_ffi.load_module(str(out))


def numbers() -> torch.Tensor:
    """All 2^16 upper halves of an fp32, each with the lower halves where rounding turns, and their neighbours."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = (upper[:, None] | lower[None]).reshape(-1)
    bits = bits[: len(bits) // WIDTH * WIDTH]
    return torch.from_numpy(bits.view(np.float32).copy()).view(-1, WIDTH)


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    """Equal bits, any NaN standing for any other."""
    g, w = got.float(), want.float()
    assert torch.equal(g.isnan(), w.isnan())
    ok = g.isnan() | (g.view(torch.int32) == w.view(torch.int32))
    assert bool(ok.all()), (g[~ok][:4], w[~ok][:4])


@pytest.mark.parametrize("name", NARROW)
def test_every_half_word(library: Any, name: str) -> None:
    x = numbers()
    held = torch.uint8 if name == "fp8_e4m3" else NARROW[name]
    stored = torch.full(x.shape, 1).to(held)
    rounded, wide = torch.full_like(x, 7.0), torch.full_like(x, 7.0)
    library[f"narrow_{name}"](x, stored, rounded, wide)
    clamped = x.clamp(-448, 448) if name == "fp8_e4m3" else x
    want = clamped.to(NARROW[name])
    same(stored.view(NARROW[name]), want)
    same(rounded, want)
    same(wide, want)
