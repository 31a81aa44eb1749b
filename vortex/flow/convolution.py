"""Convolution along the pages."""

from __future__ import annotations

from typing import Any

from vortex.flow.axes import number
from vortex.flow.joins import padded_with
from vortex.flow.optable import traces
from vortex.flow.padded import Padded
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import emit, refuse
from vortex.ir.dialects import flow


@traces("conv1d", "F.conv1d", to="flow.conv")
def conv1d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> vTensor:
    """Cross-correlation along the pages of [1, C, S] or [C, S], padded to keep their number."""
    padded = input if isinstance(input, Padded) else None
    x, w = padded.x if padded is not None else lift(input), lift(weight)
    if x.ndim not in (2, 3) or x.type.page_axis != x.ndim - 1 or (x.ndim == 3 and x.dims[0] != 1):
        raise refuse(f"the input is {x.type}", "[1, C, S] or [C, S]: pages last")
    if w.ndim != 3 or w.type.page_axis is not None:
        raise refuse(f"the weight is {w.type}", "[O, C / groups, K]")
    k = w.type.tile[2]
    stride, dilation = (_single(v, n) for v, n in ((stride, "stride"), (dilation, "dilation")))
    groups = number(groups, "groups")
    if padded is not None:
        w, padding = _reaching(padded, w, padding), "same"
        k = w.type.tile[2]
    keeps = padding == "same" or (not isinstance(padding, str) and _single(padding, "padding") == k // 2)
    for name, given, wanted in (("stride", stride, 1), ("dilation", dilation, 1)):
        if given != wanted:
            raise refuse(f"{name}={given} is not supported over pages", f"{name}={wanted}")
    if k % 2 == 0 or not keeps:
        raise refuse(
            f"padding={padding!r} with {k} taps changes the number of pages",
            f"an odd K and padding=K // 2, or F.pad(x, (a, b)) with a + b = {k - 1} first",
        )
    channels = x.type.tile[-1]
    pages_first = emit(flow.Transpose, x.reshape(channels, x.shape[-1]), perm=(1, 0))
    y = emit(flow.Conv, pages_first, w, groups=groups)
    if bias is not None:
        y = y + lift(bias)
    y = emit(flow.Transpose, y, perm=(1, 0))
    return y if x.ndim == 2 else y.unsqueeze(0)


def _reaching(padded: Padded, w: vTensor, padding: Any) -> vTensor:
    """The taps for what is padded, among zeros, so that they lie around each page."""
    before, after, outside, fill = padded.how
    if (outside, fill) != ("fill", 0.0) or padding not in (0, (0,), [0], "valid"):
        raise refuse(f"pages padded with {outside if outside != 'fill' else fill} and padding={padding!r}",
                     "zeros, all of them in F.pad; or (F.pad(..).unfold(-1, K, 1) * weight).sum(-1)")  # fmt: skip
    if w.type.tile[2] != padded.extra + 1:
        raise refuse(f"{w.type.tile[2]} taps of S + {padded.extra} pages", f"{padded.extra + 1} taps")
    reach = max(before, after)
    return padded_with(w, 2, reach - before, reach - after, 0.0)


def _single(value: Any, what: str) -> int:
    if isinstance(value, tuple | list) and len(value) == 1:
        value = value[0]
    return number(value, what)
