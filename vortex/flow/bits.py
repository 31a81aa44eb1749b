"""Similarity of bits."""

from __future__ import annotations

from typing import Any

import torch

from vortex.errors import BAD_SHAPE
from vortex.flow.integers import Whole
from vortex.flow.tensor import lift
from vortex.flow.tracer import active, current, emit, fail
from vortex.ir.dialects import flow
from vortex.ir.types import Sym, bool_

CALL = "vortex.same_bits"


def same_bits(a: Any, b: Any) -> Any:
    """At how many places of the last axis two tensors of bools agree: int32, the other axes broadcast.

    ``(a == b).sum(-1)``, but that kernels compare 32 bits at a time; the Hamming distance is the axis' length less it.

    Raises:
        VortexError: VX1005 for tensors that are no bools, or whose last axes differ.
    """
    if current() is None:
        _check(a.dtype == b.dtype == torch.bool, a.shape[-1:], b.shape[-1:], f"{a.dtype} and {b.dtype}")
        return (a == b).sum(-1, dtype=torch.int32)
    x, y = lift(a), lift(b)
    _check(x.type.dtype == y.type.dtype == bool_, x.dims[-1:], y.dims[-1:], f"{x.type} and {y.type}")
    tracer = active()
    tracer.call = CALL
    bits = x.dims[-1]
    assert isinstance(bits, int)
    words = [emit(flow.PackBits, z) for z in (x, y)]
    differing = emit(flow.DifferingBits, *words)
    with tracer.integers.summing(torch.int32):
        total = emit(flow.ReduceSum, differing, axes=(len(differing.dims) - 1,), keepdims=False)
    same = emit(flow.Sub, lift(bits), total)
    tracer.integers.know(same.value, Whole(torch.int32, 0, bits))
    return same


def _check(bools: bool, a: Any, b: Any, types: str) -> None:
    if not bools:
        raise fail(BAD_SHAPE, op=CALL, why=f"needs two tensors of bools, got {types}", expected="x > 0 makes bools")
    if not len(a) or a != b or any(isinstance(d, Sym) for d in a):
        why = f"the last axes are {list(a)} and {list(b)}"
        raise fail(BAD_SHAPE, op=CALL, why=why, expected="bits along an axis of one size, which is not the page axis")
