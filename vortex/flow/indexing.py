"""Indexing by brackets: each key of ``x[...]`` goes to what does its part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vortex.errors import SYMBOLIC_SIZE, UNKNOWN_TORCH_OP
from vortex.flow import gathers
from vortex.flow.inplace import viewing
from vortex.flow.optable import traces
from vortex.flow.padded import Padded
from vortex.flow.shapes import picked, reshaped, sliced_by, unsqueeze
from vortex.flow.shortlist import TracedNear
from vortex.flow.tensor import PageDim, lift, vTensor
from vortex.flow.tracer import emit, fail, refuse
from vortex.ir.dialects import flow
from vortex.ir.types import Sym, bool_


@traces("Tensor.__getitem__", to="flow.slice, flow.reshape, flow.gather, flow.pick")
def getitem(self: Any, key: Any) -> vTensor:
    """Slices, integers, lists, masks, None and Ellipsis on axes other than the pages; a shortlist on the pages."""
    padded = self if isinstance(self, Padded) else None
    x = padded.x if padded is not None else lift(self)
    keys = list(key) if isinstance(key, tuple) else [key]
    if padded is None and any(isinstance(k, TracedNear) for k in keys):
        if any(gathers.is_list(k) for k in keys if not isinstance(k, TracedNear)):
            raise refuse(
                "a shortlist beside another list, which go along together", "one after the other: x[near][:, i]"
            )
        x, keys = _at_shortlists(x, keys, gathers.axes_of)
    used = sum(gathers.axes_of(k) for k in keys)
    if used > x.ndim or sum(k is Ellipsis for k in keys) > 1:
        raise refuse(f"{used} indices for {x.type}", "one index for each axis, at most one ...")
    if not any(k is Ellipsis for k in keys):
        keys.append(Ellipsis)
    pages = _key_of_pages(x, keys, gathers.axes_of)
    if padded is not None or (pages is not None and _cuts(keys[pages])):
        cut = keys[pages] if pages is not None else None
        if not isinstance(cut, slice):
            raise fail(SYMBOLIC_SIZE, what="a single page")
        others = getitem(x, tuple(slice(None) if j == pages else k for j, k in enumerate(keys)))
        return Padded(others, *(padded.how if padded is not None else (0, 0))).cut(cut)
    if any(gathers.is_list(k) for k in keys):
        return gathers.indexed(x, keys)
    i = 0
    for k in keys:
        if k is None:
            x, i = unsqueeze(x, i), i + 1
        elif k is Ellipsis:
            i = x.ndim - sum(1 for later in keys[keys.index(Ellipsis) + 1 :] if later is not None)
        elif isinstance(k, slice):
            x, i = sliced_by(x, i, k), i + 1
        elif _is_number(k):
            x = picked(x, i, k)
        elif isinstance(k, vTensor) and not k.ndim and not k.type.dtype.is_float and k.type.dtype != bool_:
            x = viewing(looked_up(x, i, k), x)
        else:
            kind = "a traced tensor" if isinstance(k, vTensor) else f"a {type(k).__name__}"
            raise fail(UNKNOWN_TORCH_OP, name=f"indexing with {kind}", nearest="; torch.where and slices can")
    return x


def _at_shortlists(x: vTensor, keys: list[Any], axes_of: Callable[[Any], int]) -> tuple[vTensor, list[Any]]:
    """The tensor at the pages of the shortlists among the keys, and the other keys."""
    taken = [1 if isinstance(k, TracedNear) else axes_of(k) for k in keys]
    for j, k in enumerate(keys):
        if isinstance(k, TracedNear):
            behind = any(each is Ellipsis for each in keys[:j])
            x = k.of(x, x.ndim - sum(taken[j:]) if behind else sum(taken[:j]))
    return x, [slice(None) if isinstance(k, TracedNear) else k for k in keys]


def _key_of_pages(x: vTensor, keys: list[Any], axes_of: Callable[[Any], int]) -> int | None:
    """Which of the keys is for the page axis; None where the tensor has none, or ... stands for it."""
    i = 0
    for j, k in enumerate(keys):
        i = x.ndim - sum(axes_of(later) for later in keys[j + 1 :]) if k is Ellipsis else i + axes_of(k)
        if axes_of(k) and i - 1 == x.type.page_axis:
            return j
    return None


def _cuts(k: Any) -> bool:
    """Whether a slice of the page axis leaves some out."""
    if not isinstance(k, slice):
        return False
    return not (k.start in (None, 0) and k.step in (None, 1) and (k.stop is None or isinstance(k.stop, PageDim)))


def looked_up(x: vTensor, i: int, index: vTensor) -> vTensor:
    """The element of an axis that a traced integer names, as in ``table[vortex.layer()]``; 0 beyond the axis."""
    d = x.dims[i]
    if isinstance(d, Sym):
        raise fail(SYMBOLIC_SIZE, what="a single page")
    at = emit(flow.Where, index < 0, index + d, index)
    found = emit(flow.Gather, x, reshaped(at, [1] * x.ndim), axis=i)
    zero = lift(False) if x.type.dtype == bool_ else lift(0.0 if x.type.dtype.is_float else 0)
    return emit(flow.Where, (at >= 0) & (at < d), reshaped(found, [*x.dims[:i], *x.dims[i + 1 :]]), zero)


def _is_number(k: Any) -> bool:
    return hasattr(k, "__index__") and not isinstance(k, vTensor | bool) and not getattr(k, "ndim", 0)
