"""Element types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vortex.flow.optable import traces
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import DTYPES, active, emit, refuse
from vortex.ir.dialects import flow
from vortex.ir.types import f32, i32


def cast(x: vTensor, dtype: torch.dtype) -> vTensor:
    """Rounded to a torch element type; nothing when it is of that type."""
    to = DTYPES.get(dtype)
    if to is None:
        kept = "x.int()" if dtype in (torch.int8, torch.int16, torch.uint8) else "x.float()"
        raise refuse(f"no element type for {dtype}", f"{kept}; flows compute in float32, int32 and bool")
    if to == i32:
        return integer(x, dtype)
    if to == f32 and x.type.dtype.is_float:
        return x  # narrow floats widen when they are read
    return x if x.type.dtype == to else emit(flow.Cast, x, to=to)


def integer(x: vTensor, dtype: torch.dtype) -> vTensor:
    """As int32 or int64; int64 is kept in 32 bits, so it is taken from what is known to fit."""
    known = active().integers
    before = known.of(x.value)
    if before is None and dtype == torch.int64:
        raise refuse("int64 of a float may need 64 bits", "x.int(), or x.floor() to stay a float")
    if before is not None and before.dtype == dtype and not before.python:
        return x
    made = emit(flow.Cast, x, to=i32)
    if before is not None:
        known.know(made.value, replace(before, dtype=dtype, python=False))
    return made


def _cast(name: str, dtype: torch.dtype) -> None:
    @traces(f"Tensor.{name}", to="flow.cast")
    def trace(self: Any) -> vTensor:
        return cast(lift(self), dtype)

    trace.__doc__ = f"As {dtype}."


for _name, _dtype in {
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "half": torch.float16,
    "bool": torch.bool,
    "int": torch.int32,
    "long": torch.int64,
}.items():
    _cast(_name, _dtype)


PYTHON: dict[type, torch.dtype] = {float: torch.float64, int: torch.int64, bool: torch.bool}
"""What torch takes Python's types for."""


@traces("Tensor.to", to="flow.cast")
def to(self: Any, *args: Any, **kwargs: Any) -> vTensor:
    """As another element type; a device other than the tensor's own is refused."""
    x, wanted = lift(self), [*args, *kwargs.values()]
    if unknown := set(kwargs) - {"dtype", "device", "other", "non_blocking", "copy"}:
        raise refuse(f"argument '{unknown.pop()}' is not supported", "to(dtype) or to(other)")
    for item in wanted:
        item = PYTHON.get(item, item) if isinstance(item, type) else item
        if isinstance(item, torch.dtype):
            x = cast(x, item)
        elif isinstance(item, vTensor | torch.Tensor):
            x = cast(x, item.dtype)
        elif item is not None and not isinstance(item, bool) and torch.device(item).type != "cpu":
            raise refuse(f"a flow has no say in devices, got {item}", "to(dtype); leave devices to the compiler")
    return x


@traces("Tensor.type_as", to="flow.cast")
def type_as(self: Any, other: Any) -> vTensor:
    """As the element type of another tensor."""
    return cast(lift(self), other.dtype)


@traces("clone", "detach", "Tensor.contiguous", "Tensor.cpu", to="x")
def same(input: Any, *, memory_format: Any = None) -> vTensor:
    """The operand itself: a traced value has no storage to copy."""
    return lift(input)


@traces("torch.is_floating_point", to="a Python bool")
def is_floating_point(input: Any) -> bool:
    """Whether the elements are floats."""
    return lift(input).is_floating_point()


@traces("torch.is_complex", to="False")
def is_complex(input: Any) -> bool:
    """Whether the elements are complex, which none are."""
    return lift(input).is_complex()
