"""New tensors of one number, in the shape of others."""

from __future__ import annotations

from typing import Any

import torch

from vortex.flow.axes import counts
from vortex.flow.casts import cast
from vortex.flow.joins import filled, full_of
from vortex.flow.optable import traces
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import refuse
from vortex.ir.types import Dim


def _full(x: vTensor, fill: Any, shape: list[Dim] | None, dtype: torch.dtype | None, device: Any) -> vTensor:
    if device is not None and torch.device(device).type != "cpu":
        raise refuse(f"a flow has no say in devices, got {device}", "leave devices to the compiler")
    if isinstance(fill, vTensor | torch.Tensor):
        raise refuse("the number is a tensor", "a Python number; or x * 0 + value")
    shape = list(x.dims) if shape is None else shape
    return full_of(x, fill, shape) if dtype is None else cast(filled(shape, fill), dtype)


@traces("zeros_like", to="flow.broadcast")
def zeros_like(input: Any, *, dtype: Any = None, device: Any = None) -> vTensor:
    """Zeros in the shape of another tensor."""
    return _full(lift(input), 0, None, dtype, device)


@traces("ones_like", to="flow.broadcast")
def ones_like(input: Any, *, dtype: Any = None, device: Any = None) -> vTensor:
    """Ones in the shape of another tensor."""
    return _full(lift(input), 1, None, dtype, device)


@traces("full_like", to="flow.broadcast")
def full_like(input: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> vTensor:
    """One number in the shape of another tensor."""
    return _full(lift(input), fill_value, None, dtype, device)


@traces("Tensor.new_zeros", to="flow.broadcast")
def new_zeros(self: Any, *size: Any, dtype: Any = None, device: Any = None) -> vTensor:
    """Zeros of the element type of another tensor; x.shape[i] gives the page axis."""
    return _full(lift(self), 0, counts(size), dtype, device)


@traces("Tensor.new_ones", to="flow.broadcast")
def new_ones(self: Any, *size: Any, dtype: Any = None, device: Any = None) -> vTensor:
    """Ones of the element type of another tensor; x.shape[i] gives the page axis."""
    return _full(lift(self), 1, counts(size), dtype, device)


@traces("Tensor.new_full", to="flow.broadcast")
def new_full(self: Any, size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> vTensor:
    """One number, of the element type of another tensor; x.shape[i] gives the page axis."""
    return _full(lift(self), fill_value, counts((size,)), dtype, device)
