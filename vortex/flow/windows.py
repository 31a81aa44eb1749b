"""Neighbours along an axis: padding, windows and pools. Along the pages there is one result for each page.

torch says neighbouring pages by padding and cutting: ``F.pad(x, (1, 0))[..., :-1]`` is the page before, and
``F.pad(x, (1, 1)).unfold(-1, 3, 1)`` a page with both its neighbours (:mod:`vortex.flow.padded`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from vortex.flow.axes import axis, number
from vortex.flow.gathers import at_indices, at_known
from vortex.flow.inplace import viewing
from vortex.flow.joins import filled, padded_with, stack
from vortex.flow.logic import is_int
from vortex.flow.optable import traces
from vortex.flow.padded import Padded
from vortex.flow.reductions import fold
from vortex.flow.shapes import permuted
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import refuse
from vortex.ir.dialects import flow
from vortex.ir.types import Sym, bool_

NUMPY_MODES = {"replicate": "edge", "reflect": "reflect", "circular": "wrap"}
"""What numpy calls the modes of F.pad."""


@traces("F.pad", to="flow.concat, flow.slice, flow.gather; flow.shift over pages")
def pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    """A constant, or with a mode other elements, before and after axes, from the last; negative amounts cut."""
    x = input.x if isinstance(input, Padded) else lift(input)
    amounts = [number(n, "padding") for n in pad]
    if len(amounts) % 2 or len(amounts) > 2 * x.ndim:
        raise refuse(f"padding {amounts} for {x.type}", "two numbers for each axis, the last axis first")
    if mode not in ("constant", *NUMPY_MODES) or (mode != "constant" and value is not None):
        raise refuse(f"mode={mode!r} with value={value}", "mode 'constant', 'replicate', 'reflect' or 'circular'")
    if mode != "constant" and not 1 <= x.ndim - len(amounts) // 2 <= 2:
        raise refuse(f"mode={mode!r} and padding {amounts} for {x.type}", "all axes but the first one or two")
    fill: float = 0.0 if value is None else value
    if x.type.dtype == bool_:
        fill = bool(fill)
    elif not x.type.dtype.is_float:
        fill = int(fill)
    pages = (0, 0)
    for k in range(0, len(amounts), 2):
        i, around = x.ndim - 1 - k // 2, (amounts[k], amounts[k + 1])
        if i == x.type.page_axis:
            pages = around
        elif mode == "constant":
            x = padded_with(x, i, *around, fill)
        else:
            x = _extended(x, i, *around, mode)
    if pages == (0, 0) and not isinstance(input, Padded):
        return x
    kept = vTensor(x.value)  # what is written into x later is not in the padded tensor, which has memory of its own
    kept.copied = True
    how = input.how if isinstance(input, Padded) else (0, 0)
    return Padded(kept, *how).padded(*pages, _outside(mode), float(fill))


def _outside(mode: str) -> str:
    """What ``flow.shift`` calls the mode."""
    if mode not in ("constant", "replicate"):
        raise refuse(f"mode={mode!r} along the pages", "'constant' or 'replicate'; x.roll(n, dim) goes on at the end")
    return "fill" if mode == "constant" else "edge"


def _extended(x: vTensor, i: int, before: int, after: int, mode: str) -> vTensor:
    """An axis of known size with elements of itself around it."""
    d = x.dims[i]
    assert isinstance(d, int)
    most = {"replicate": math.inf if d else 0, "reflect": d - 1, "circular": d}[mode]
    if max(before, after) > most or d + min(before, 0) + min(after, 0) < 0:
        raise refuse(f"{before} and {after} around an axis of {d} with mode={mode!r}", f"at most {most} at an end")
    places = np.pad(np.arange(d), (max(before, 0), max(after, 0)), NUMPY_MODES[mode])  # type: ignore[call-overload]
    kept = places[max(-before, 0) : len(places) - max(-after, 0)]
    return at_known(x, i, torch.from_numpy(kept))


@traces("Tensor.unfold", to="flow.gather, flow.slice; flow.shift over padded pages")
def unfold(self: Any, dimension: Any, size: Any, step: Any) -> vTensor:
    """Windows of an axis, as a last axis; over pages as F.pad(x, (a, b)).unfold(-1, a + b + 1, 1)."""
    n, by = number(size, "size"), number(step, "step")
    if isinstance(self, Padded):
        if axis(dimension, self.x.ndim) != self.x.type.page_axis:
            raise self.refusal()
        return stack(self.windows(n, by), -1)
    x = lift(self)
    i = axis(dimension, x.ndim)
    d = x.dims[i]
    if isinstance(d, Sym):
        raise refuse(
            f"windows of {n}, {by} apart, of the page axis are not one for each page",
            f"pad first: F.pad(x, ({n // 2}, {n - 1 - n // 2})).unfold(-1, {n}, 1), pages last",
        )
    if n < 0 or by < 1 or n > d:
        raise refuse(f"windows of {n}, {by} apart, of an axis of {d}", f"sizes up to {d} and a step from 1")
    made = _windows(x, i, torch.arange(0, d - n + 1, by)[:, None] + torch.arange(n))
    return viewing(made, x, repeated=by < n and d - n >= by)


def _windows(x: vTensor, i: int, places: torch.Tensor) -> vTensor:
    """``x`` at ``places`` [windows, size] of axis ``i``: the windows in its place, their elements last."""
    made = at_indices(x, i, places)
    return permuted(made, [*(a for a in range(made.ndim) if a != i + 1), i + 1])


# pools -------------------------------------------------------------------------------------------


@traces("F.max_pool1d", "torch.max_pool1d", to="flow.maximum of flow.shift; flow.reduce_max")
def max_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> vTensor:
    """Largest of each window of the last axis of [C, L] or [N, C, L]; over pages stride=1 and padding=size // 2."""
    if return_indices:
        raise refuse("return_indices=True", "the values alone")
    pool = _Pool.of(input, kernel_size, stride, padding, dilation, ceil_mode)
    return pool.reduced(-math.inf, lambda parts: _folded(parts, torch.maximum), flow.ReduceMax)


@traces("F.avg_pool1d", to="sum of flow.shift / size; flow.reduce_sum")
def avg_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> vTensor:
    """Mean of each window of the last axis of [C, L] or [N, C, L]; over pages stride=1 and padding=size // 2."""
    pool = _Pool.of(input, kernel_size, stride, padding, 1, ceil_mode)
    total = pool.reduced(0.0, lambda parts: _folded(parts, torch.add), flow.ReduceSum)
    if count_include_pad or not pool.padding:
        return total / float(pool.size)
    ones = filled([pool.x.dims[-1]], 1.0)
    return total / pool.on(ones).reduced(0.0, lambda parts: _folded(parts, torch.add), flow.ReduceSum)


def _folded(parts: Sequence[vTensor], take: Callable[[Any, Any], Any]) -> vTensor:
    made = parts[0]
    for part in parts[1:]:
        made = take(made, part)
    return made


class _Pool:
    """The windows of the last axis that a pool reduces."""

    def __init__(self, x: vTensor, around: Padded | None, size: int, stride: int, padding: int, dilation: int) -> None:
        self.x, self.around = x, around
        self.size, self.stride, self.padding, self.dilation = size, stride, padding, dilation

    @classmethod
    def of(cls, given: Any, size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> _Pool:
        """The windows that torch's arguments mean; refused where the pages would not have one each."""
        x = given.x if isinstance(given, Padded) else lift(given)
        named = ((size, "kernel_size"), (padding, "padding"), (dilation, "dilation"))
        n, pad, apart = (_single(v, w) for v, w in named)
        by = n if stride is None or stride in ((), []) else _single(stride, "stride")
        if x.ndim not in (2, 3) or is_int(x):
            raise refuse(f"the input is {x.type}", "floats of shape [C, L] or [N, C, L]")
        if n < 1 or by < 1 or apart < 1 or not 0 <= 2 * pad <= n:
            raise refuse(f"size {n}, stride {by}, padding {pad}, dilation {apart}", "padding up to half the size")
        if ceil_mode:
            raise refuse("ceil_mode=True", "padding, or F.pad first")
        over_pages = isinstance(x.dims[-1], Sym)
        if isinstance(given, Padded) and not over_pages:
            raise given.refusal()
        extra = given.extra if isinstance(given, Padded) else 0
        if over_pages and (by != 1 or 2 * pad + extra != apart * (n - 1)):
            keeps = f"stride=1 and padding={apart * (n - 1) // 2}" if n % 2 else "stride=1 and an odd size"
            raise refuse(
                f"size {n}, stride {by} and padding {pad} change the number of pages",
                f"{keeps}; or F.pad(x, (a, b)) with a + b = {apart * (n - 1)} and padding=0",
            )
        return cls(x, given if isinstance(given, Padded) else None, n, by, pad, apart)

    def on(self, x: vTensor) -> _Pool:
        """The same windows of another tensor."""
        return _Pool(x, None, self.size, self.stride, self.padding, self.dilation)

    def reduced(self, outside: float, fold_pages: Callable[[Sequence[vTensor]], vTensor], op: type[flow.Reduce]) -> Any:
        """Each window folded; ``outside`` stands where padding has no element."""
        if isinstance(self.x.dims[-1], Sym):
            if self.around is not None and self.padding:
                raise refuse(f"padding={self.padding} of padded pages", "all padding in F.pad")
            whole = self.around
            if whole is None:
                whole = Padded(self.x, self.padding, self.padding, "fill", outside)
            return fold_pages([whole.at(k * self.dilation) for k in range(self.size)])
        x = padded_with(self.x, self.x.ndim - 1, self.padding, self.padding, outside)
        d, reach = x.dims[-1], self.dilation * (self.size - 1) + 1
        assert isinstance(d, int)
        if d < reach:
            raise refuse(f"windows that reach over {reach} of an axis of {d}", "smaller windows, or padding")
        places = torch.arange(0, d - reach + 1, self.stride)[:, None] + self.dilation * torch.arange(self.size)
        return fold(op, _windows(x, x.ndim - 1, places), -1, False)


def _single(value: Any, what: str) -> int:
    return number(value[0] if isinstance(value, tuple | list) and len(value) == 1 else value, what)
