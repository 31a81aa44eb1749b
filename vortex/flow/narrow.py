"""Fields of codes and bits: what the IR keeps of them, how numbers become codes, and how they are read.

``Field(16, 128, dtype="int4", scale=0)`` is two fields of the IR, ``x`` (codes) and ``x_scale`` (f16). The same code
runs traced and on real tensors, so that the eager oracle quantises and reads as kernels do.

How codes are made, with ``most`` = 7 (int4) or 127 (int8), over the axes that share a scale:

    scale = f16(min(max |x| / most, 65504))         to nearest even
    code  = clamp(x / scale, -most, most)           to nearest even
    read  = code * scale                            fp32

So numbers that are all zero, or so small that f16 has no scale for them (max |x| / most at most 2^-25), read as zeros;
infinities and what is larger than f16's range saturate at +-most * 65504; a NaN makes all numbers of its scale NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vortex.errors import CODE_RANGE, Loc
from vortex.flow.flow import Field
from vortex.flow.integers import Whole
from vortex.flow.tensor import vTensor
from vortex.flow.tracer import Tracer, active
from vortex.ir.core import Op
from vortex.ir.dialects import flow
from vortex.ir.types import MOST_CODE, DType, TensorType, bool_, f16, i32, int8, uint1

F16_MAX = 65504.0
SCALE = "{}_scale"
"""The name of the field that has the scales of another."""


def kept(name: str, f: Field, stored: DType) -> dict[str, TensorType]:
    """The fields of the IR that a field is kept as, one tile each; ``stored`` is the type of those that name none."""
    made = {name: TensorType(f.dtype or stored, f.shape)}
    if f.scale is not None:
        made[SCALE.format(name)] = TensorType(f16, tuple(d if a in f.scale else 1 for a, d in enumerate(f.shape)))
    return made


def written(name: str, f: Field, x: Any) -> dict[str, Any]:
    """What the fields of :func:`kept` are given, from what forward_cache returns for the field: a tensor of its shape,
    traced or real.
    """
    if f.scale is None:
        return {name: x}
    assert f.dtype is not None
    x = x.float()
    size = x.abs().amax([a for a in range(len(f.shape)) if a not in f.scale], keepdim=True)
    scale = (size / float(MOST_CODE[f.dtype])).clamp(max=F16_MAX).half()
    return {name: x / scale, SCALE.format(name): scale}


def require_codes(name: str, f: Field, x: vTensor) -> None:
    """VX1050 unless a field without a scale is given integers that its codes are known to hold, or bools for bits."""
    if f.dtype is None or f.dtype.is_float or f.scale is not None:
        return
    known = active().integers.of(x.value)
    if f.dtype == uint1:
        if x.type.dtype != bool_:
            why = f"field '{name}' keeps bits, and is given {_shown(x, known)}"
            raise CODE_RANGE.at(why=why, hint="return bools: x > 0 keeps the sign of x")
        return
    most = MOST_CODE[f.dtype]
    if known is None:
        why = f"field '{name}' keeps {f.dtype} codes without a scale, and is given {_shown(x, known)}"
        hint = f"declare it with scale=(), or return codes: x.round().int().clamp(-{most}, {most})"
        raise CODE_RANGE.at(why=why, hint=hint)
    if not -most <= known.low <= known.high <= most:
        why = f"field '{name}' keeps {f.dtype} codes, from -{most} to {most}, and is given {_shown(x, known)}"
        raise CODE_RANGE.at(why=why, hint=f"bound them: x.clamp(-{most}, {most})")


def _shown(x: vTensor, known: Whole | None) -> str:
    if known is None or known.dtype == torch.bool:
        return "bools" if known is not None else "floats"
    return f"integers between {known.low} and {known.high}"


def read(name: str, f: Field, given: Mapping[str, Any]) -> Any:
    """``cache.<name>`` from the fields of :func:`kept`, traced or real (codes as integers, floats in fp32): numbers;
    int32 codes where there is no scale; bools for bits.
    """
    x = given[name]
    if f.scale is not None:
        return x * given[SCALE.format(name)]
    if f.dtype is None or f.dtype.is_float:
        return x
    to = bool_ if f.dtype == uint1 else i32
    if not isinstance(x, vTensor):
        return x.to(torch.bool if to == bool_ else torch.int32)
    tracer = active()
    value = tracer.function.add(flow.Cast(x.value, to))
    if to == i32:
        tracer.integers.know(value, Whole(torch.int32, -MOST_CODE[f.dtype], MOST_CODE[f.dtype]))
    return vTensor(value)


# memory -----------------------------------------------------------------------------------------


def codes(x: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Numbers as codes, int8: clamped, to nearest even, NaN to 0; bits are x != 0."""
    if dtype == uint1:
        return (x != 0).to(torch.int8)
    most = MOST_CODE[dtype]
    return x.float().nan_to_num(0.0, float("inf"), float("-inf")).clamp(-most, most).round().to(torch.int8)


def packed(x: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Codes as memory holds them: int8 as it is, others packed along the last axis, uint8, the first in the lowest
    bits.
    """
    if dtype == int8:
        return x.to(torch.int8)
    per = dtype.per_byte
    low = (x.to(torch.int32) & (2**dtype.bits - 1)).unflatten(-1, (-1, per))
    return (low << (torch.arange(per, device=x.device) * dtype.bits)).sum(-1).to(torch.uint8)


def unpacked(x: torch.Tensor, dtype: DType) -> torch.Tensor:
    """The codes in memory of :func:`packed`, int8."""
    if dtype == int8:
        return x
    per = dtype.per_byte
    each = (x.to(torch.int32)[..., None] >> (torch.arange(per, device=x.device) * dtype.bits)) & (2**dtype.bits - 1)
    flat = each.flatten(-2)
    sign = 2 ** (dtype.bits - 1)
    return (flat if dtype == uint1 else (flat ^ sign) - sign).to(torch.int8)


def numbers(x: torch.Tensor, dtype: DType) -> torch.Tensor:
    """What memory holds as numbers: codes as int32, floats in fp32."""
    return x.float() if dtype.is_float else unpacked(x, dtype).int()


def explain(tracer: Tracer, ops: Sequence[Op], name: str, loc: Loc | None) -> None:
    """Name what was traced for a field after it, and say whence it comes: no line of the flow asked for it."""
    for o in ops:
        o.loc = loc
        if o.value.name != name and not o.value.name.startswith(f"{name}_"):
            tracer.function.rename(o.value, f"{name}_{o.name.rpartition('.')[2]}")
        tracer.named.discard(o.value)
