"""Convolution along the pages."""

from __future__ import annotations

from typing import Any

from vortex.flow.axes import number
from vortex.flow.optable import traces
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import emit, refuse
from vortex.ir.dialects import flow


@traces("conv1d", "F.conv1d", to="flow.conv")
def conv1d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> vTensor:
    """Cross-correlation along the pages of [1, C, S] or [C, S], padded to keep their number."""
    x, w = lift(input), lift(weight)
    if x.ndim not in (2, 3) or x.type.page_axis != x.ndim - 1 or (x.ndim == 3 and x.dims[0] != 1):
        raise refuse(f"the input is {x.type}", "[1, C, S] or [C, S]: pages last")
    if w.ndim != 3 or w.type.page_axis is not None:
        raise refuse(f"the weight is {w.type}", "[O, C / groups, K]")
    k = w.type.tile[2]
    stride, dilation = (_single(v, n) for v, n in ((stride, "stride"), (dilation, "dilation")))
    keeps = padding == "same" or (not isinstance(padding, str) and _single(padding, "padding") == k // 2)
    for name, given, wanted in (("stride", stride, 1), ("dilation", dilation, 1)):
        if given != wanted:
            raise refuse(f"{name}={given} is not supported over pages", f"{name}={wanted}")
    if k % 2 == 0 or not keeps:
        raise refuse(f"padding={padding!r} with {k} taps changes the number of pages", "an odd K and padding=K // 2")
    channels = x.type.tile[-1]
    pages_first = emit(flow.Transpose, x.reshape(channels, x.shape[-1]), perm=(1, 0))
    y = emit(flow.Conv, pages_first, w, groups=number(groups, "groups"))
    if bias is not None:
        y = y + lift(bias)
    y = emit(flow.Transpose, y, perm=(1, 0))
    return y if x.ndim == 2 else y.unsqueeze(0)


def _single(value: Any, what: str) -> int:
    if isinstance(value, tuple | list) and len(value) == 1:
        value = value[0]
    return number(value, what)
