"""Codes and bits as kernels pack and unpack them, compiled: what torch makes of every byte and of every number that
turns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("tvm")

from tvm.script.ir_builder import IRBuilder

from tests.codegen.test_narrow import numbers
from vortex.codegen.build.llvm import build_library, detect_mcpu
from vortex.codegen.emit import parse_tir
from vortex.codegen.narrow import STORAGE, code, narrow, packed, round_to, unpacked
from vortex.codegen.tir import T, loop, put, tirx
from vortex.flow import narrow as eager
from vortex.ir import numerics
from vortex.ir.types import DTYPES

CODES = ("int8", "int4", "uint1")
WIDTH = 16


def function(name: str) -> Any:
    """Stores x as codes, x rounded in place, and the codes of each stored byte."""
    dtype = DTYPES[name]
    per = dtype.per_byte
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(f"packing_{name}")
        n = tirx.Var("n", "int32")
        x = T.arg("x", T.Buffer((n, WIDTH), "float32", align=4))
        stored = T.arg("stored", T.Buffer((n, WIDTH // per), STORAGE[name], align=1))
        rounded = T.arg("rounded", T.Buffer((n, WIDTH), "int32", align=4))
        read = T.arg("read", T.Buffer((n, WIDTH), "int32", align=4))
        with loop("i", n) as i:
            with loop("b", WIDTH // per) as b:
                if per == 1:
                    put(stored, narrow(x[i, b], dtype), i, b)
                else:
                    put(stored, packed([code(x[i, b * per + k], dtype) for k in range(per)], dtype), i, b)
            with loop("e", WIDTH) as e:
                put(rounded, round_to(x[i, e], dtype), i, e)
                byte = stored[i, T.floordiv(e, T.int32(per))]
                if per == 1:
                    put(read, T.Cast("int32", byte), i, e)
                else:
                    put(read, unpacked(byte, T.floormod(e, T.int32(per)), dtype), i, e)
    return parse_tir(str(builder.get().script()), name)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import tvm_ffi

    out = tmp_path_factory.mktemp("packing") / "packing.so"
    build_library({f"packing_{n}": function(n) for n in CODES}, detect_mcpu(), Path(out))
    return tvm_ffi.load_module(str(out))


def halves() -> torch.Tensor:
    """Numbers between codes, exactly and nearly, at both ends of each range and beyond."""
    ends = torch.cat([torch.arange(-260, 261) / 2, torch.tensor([1e9, -1e9, 2**31, -(2**31)])]).float()
    up, down = (torch.nextafter(ends, torch.tensor(x)) for x in (float("inf"), float("-inf")))
    x = torch.cat([ends, up, down])
    return torch.cat([x, x.new_zeros(-len(x) % WIDTH)]).view(-1, WIDTH)


@pytest.mark.parametrize("name", CODES)
def test_kernels_pack_as_torch_does(library: Any, name: str) -> None:
    dtype = DTYPES[name]
    x = torch.cat([numbers(), halves()])
    want = eager.codes(x, dtype)
    stored = torch.full((len(x), WIDTH // dtype.per_byte), 3, dtype=eager.packed(want[:1], dtype).dtype)
    rounded, read = (torch.full(x.shape, 99, dtype=torch.int32) for _ in range(2))
    library[f"packing_{name}"](x, stored, rounded, read)
    assert torch.equal(stored, eager.packed(want, dtype))
    assert torch.equal(rounded, want.int())
    assert torch.equal(read, want.int())
    np.testing.assert_array_equal(numerics.narrow(x.numpy(), dtype), want.numpy())


@pytest.mark.parametrize("name", CODES)
def test_every_byte_is_read_as_it_lies(name: str) -> None:
    dtype = DTYPES[name]
    every = torch.arange(256).to(torch.uint8)
    if name == "int8":
        assert torch.equal(eager.unpacked(every.view(torch.int8), dtype), every.view(torch.int8))
        return
    low = [(int(b) >> dtype.bits * k) % 2**dtype.bits for b in every for k in range(dtype.per_byte)]
    want = [x - 16 if name == "int4" and x >= 8 else x for x in low]
    assert eager.unpacked(every[None], dtype)[0].tolist() == want
    again = eager.packed(eager.unpacked(every, dtype), dtype)
    assert torch.equal(again, every)


def test_words_of_bits_are_little_endian() -> None:
    x = torch.rand(5, 3, 70) < 0.5
    padded = torch.nn.functional.pad(x, (0, 96 - 70))
    want = padded.unflatten(-1, (3, 32)).long() << torch.arange(32)
    want = want.sum(-1)
    have = torch.from_numpy(numerics.words_of_bits(x.numpy())).long() & 0xFFFFFFFF
    assert torch.equal(have, want)
    bytes_ = eager.packed(padded.to(torch.int8), DTYPES["uint1"])
    assert torch.equal(bytes_.contiguous().view(torch.int32).long() & 0xFFFFFFFF, want)
