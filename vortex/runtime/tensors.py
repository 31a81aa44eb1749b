"""torch's names for element types, and what a tensor handed to the runtime must be."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from numbers import Real
from operator import index

import torch

from vortex.errors import BAD_ARGUMENT, VortexError

TORCH: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "i32": torch.int32,
    "i64": torch.int64,
    "bool": torch.bool,
    "int8": torch.int8,
    "int4": torch.uint8,
    "uint1": torch.uint8,
}
"""Elements of less than a byte lie in bytes."""

SHORT: dict[torch.dtype, str] = {v: k for k, v in TORCH.items() if v != torch.uint8}


def short(dtype: torch.dtype) -> str:
    """``bf16`` for ``torch.bfloat16``; torch's own name for a type that vortex has none for."""
    return SHORT.get(dtype, str(dtype).removeprefix("torch."))


def as_kernel_sees(tensor: torch.Tensor) -> torch.Tensor:
    """fp8 as its bits and bools as i32, which is how kernels take them; other tensors as they are."""
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8)
    return tensor.to(torch.int32) if tensor.dtype == torch.bool else tensor


def as_stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes where fp8 is wanted as fp8, which is how some engines hold it; other tensors as they are."""
    return tensor.view(dtype) if tensor.dtype == torch.uint8 and dtype == torch.float8_e4m3fn else tensor


ALIGNMENT = 16
"""Bytes that kernels of a GPU move at a time, and of which addresses given to them are multiples."""


def require_aligned(what: str, tensor: torch.Tensor) -> None:
    """VX6002 unless every row of ``tensor``, all axes but the last, begins on such an address."""
    steps = [s * tensor.element_size() for s, n in zip(tensor.stride()[:-1], tensor.shape, strict=False) if n > 1]
    if tensor.data_ptr() % ALIGNMENT:
        raise wrong(what, f"begins at an address that is not a multiple of {ALIGNMENT} bytes, which a GPU needs")
    if any(step % ALIGNMENT for step in steps):
        raise wrong(what, f"has strides of {steps} bytes; a GPU needs multiples of {ALIGNMENT}")


def whole(number: object) -> int | None:
    """An integer of Python's or of any library that has some (numpy), but no bool; None for anything else."""
    try:
        return None if isinstance(number, bool) else index(number)  # type: ignore[arg-type]
    except TypeError:
        return None


def require_integer(what: str, number: object, least: int = 0) -> int:
    """``number`` as an int of Python's; VX6002 when it is no integer or less than ``least``."""
    found = whole(number)
    if found is None or not least <= found < 2**31:
        raise wrong(what, f"is {number!r}; an integer of at least {least} is needed")
    return found


def require_number(what: str, number: object) -> float:
    """``number`` as a float of Python's; VX6002 when it is no number, or NaN or infinite."""
    if isinstance(number, bool) or not isinstance(number, Real) or not isfinite(number):
        raise wrong(what, f"is {number!r}; a finite number is needed")
    return float(number)


def wrong(what: str, why: str) -> VortexError:
    return BAD_ARGUMENT.at(what=what, why=why)


def require(
    what: str,
    tensor: object,
    dtype: torch.dtype,
    shape: Sequence[int | str],
    device: torch.device | None,
    *,
    strided: bool = False,
) -> torch.Tensor:
    """``tensor`` when it has this type, shape and place and is contiguous (``strided``: its last axis is).

    A string in ``shape`` stands for any size and is what the message calls it.

    Raises:
        VortexError: VX6002 saying which of these it lacks.
    """
    if not isinstance(tensor, torch.Tensor):
        raise wrong(what, f"is {type(tensor).__name__}; a torch tensor is needed")
    wanted = f"[{', '.join(map(str, shape))}]"
    if tensor.dim() != len(shape) or any(
        isinstance(w, int) and w != g for w, g in zip(shape, tensor.shape, strict=True)
    ):
        raise wrong(what, f"has shape {list(tensor.shape)}; {wanted} is needed")
    if tensor.dtype != dtype:
        raise wrong(what, f"is {short(tensor.dtype)}; {short(dtype)} is needed")
    if device is not None and tensor.device != device:
        raise wrong(what, f"is on {tensor.device}; {device} is needed")
    if tensor.is_neg():
        raise wrong(what, "is a lazily negated view, whose memory has the other sign; x.resolve_neg() is needed")
    if strided:
        if tensor.numel() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise wrong(what, f"has strides {list(tensor.stride())}; the last must be 1")
    elif not tensor.is_contiguous():
        raise wrong(what, f"has strides {list(tensor.stride())}; a contiguous tensor is needed")
    return tensor
