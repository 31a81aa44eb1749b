"""Elements of an axis at listed places: index lists, masks, gathers. Pages keep their axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from vortex.errors import SYMBOLIC_SIZE, UNKNOWN_TORCH_OP
from vortex.flow.axes import axis
from vortex.flow.logic import where
from vortex.flow.optable import traces
from vortex.flow.shapes import flatten, permuted, picked, reshaped, sliced, sliced_by, unsqueeze
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import active, emit, fail, refuse
from vortex.ir.dialects import flow
from vortex.ir.types import Sym, bool_

Known = torch.Tensor
"""Indices that are known while tracing, int64."""


def gathered(x: vTensor, i: int, index: vTensor, *, wraps: bool) -> vTensor:
    """``x`` at ``index`` of axis ``i``: of the rank of x, broadcast beside the axis; ``wraps`` lets -1 be the last."""
    return emit(flow.Gather, x, within(index, known_size(x, i), wraps=wraps), axis=i)


def known_size(x: vTensor, i: int) -> int:
    """The size of an axis other than the pages."""
    d = x.dims[i]
    if isinstance(d, Sym):
        raise fail(SYMBOLIC_SIZE, what="a choice of pages by index")
    return d


def within(index: vTensor, d: int, *, wraps: bool) -> vTensor:
    """The indices as numbers from 0 to d - 1; refused where they may be others, for which torch would raise."""
    known = active().integers.of(index.value)
    if known is None or known.dtype == torch.bool:
        raise refuse(f"indices are {index.type.dtype}", "integers: x.argmax(d), x.int(), or a list of numbers")
    low, high = known.low, known.high
    if math.prod(n for n in index.dims if isinstance(n, int)) and not (-d if wraps else 0) <= low <= high < d:
        least = -d if wraps else 0
        raise refuse(
            f"indices between {low} and {high} of an axis of {d}",
            f"indices from {least} to {d - 1}; index.clamp(0, {d - 1}) bounds traced ones",
        )
    return where(index < 0, index + d, index) if low < 0 else index


def at_known(x: vTensor, i: int, index: Known) -> vTensor:
    """Elements of an axis at known indices (one axis of them); evenly spaced ones are a slice."""
    d, n = known_size(x, i), len(index)
    listed = [int(k) for k in index]
    if listed and not -d <= min(listed) <= max(listed) < d:
        wrong = next(k for k in listed if not -d <= k < d)
        raise refuse(f"index {wrong} of axis {i} of {x.type}", f"indices from {-d} to {d - 1}")
    listed = [k % d for k in listed]
    step = listed[1] - listed[0] if n > 1 else 1
    if n == 0 or (step != 0 and listed == list(range(listed[0], listed[0] + n * step, step))):
        return sliced(x, i, listed[0] if listed else 0, n, step)
    at = lift(torch.tensor(listed, dtype=torch.int32))
    return emit(flow.Gather, x, reshaped(at, [n if j == i else 1 for j in range(x.ndim)]), axis=i)


def known(index: Any) -> Known | None:
    """Indices that are known while tracing; None for traced ones. A mask stays a mask."""
    if isinstance(index, vTensor):
        return None
    made = torch.as_tensor(np.asarray(index) if isinstance(index, range) else index).detach().cpu()
    if made.dtype == torch.bool:
        return made
    if (made.dtype.is_floating_point and made.numel()) or made.dtype == torch.uint8:
        raise refuse(f"indices are {made.dtype}", "integers or a bool mask")
    return made.long()


# x[..., index] -----------------------------------------------------------------------------------


def is_list(k: Any) -> bool:
    """Whether an index is one of torch's advanced ones: a list, a mask, or a tensor of integers with an axis."""
    if isinstance(k, list | tuple | range):
        return True
    has_axis = bool(getattr(k, "ndim", 0))
    return has_axis and (isinstance(k, vTensor | torch.Tensor) or hasattr(k, "__array__"))


def indexed(x: vTensor, keys: list[Any]) -> vTensor:
    """``x[keys]`` where some keys are lists; as in torch, several of them go along together."""
    i, lists = 0, []
    for at, k in enumerate(keys):
        if k is None:
            x, i = unsqueeze(x, i), i + 1
        elif k is Ellipsis:
            i = x.ndim - sum(axes_of(later) for later in keys[at + 1 :])
        elif isinstance(k, slice):
            x, i = sliced_by(x, i, k), i + 1
        elif is_list(k):
            lists += _places(x, i, k)
            i += axes_of(k)
        else:
            x = picked(x, i, k)
    if len(lists) == 1:
        return at_indices(x, *lists[0])
    return _at_together(x, [a for a, _ in lists], [index for _, index in lists])


def axes_of(k: Any) -> int:
    """How many axes of the tensor a key is for."""
    if k is None or k is Ellipsis:
        return 0
    if not is_list(k) or isinstance(k, vTensor):
        return 1
    found = known(k)
    return found.ndim if found is not None and found.dtype == torch.bool else 1


def _places(x: vTensor, i: int, k: Any) -> list[tuple[int, Any]]:
    """The axes that an advanced key is for, with the indices along each; a mask is for as many as it has."""
    if isinstance(k, vTensor) and k.type.dtype == bool_:
        raise fail(
            UNKNOWN_TORCH_OP,
            name="indexing with a traced mask",
            nearest="; its length depends on the data: torch.where(mask, x, other) keeps the shape",
        )
    index = known(k)
    if index is None or index.dtype != torch.bool:
        return [(i, k if index is None else index)]
    sizes = [known_size(x, a) for a in range(i, min(i + index.ndim, x.ndim))]
    if sizes != list(index.shape):
        raise refuse(f"a mask of shape {list(index.shape)} for {x.type}", f"a mask of shape {sizes}")
    return [(i + j, at) for j, at in enumerate(index.nonzero(as_tuple=True))]


def at_indices(x: vTensor, i: int, index: Any) -> vTensor:
    """Axis ``i`` replaced by the axes of the index."""
    before, after = x.dims[:i], x.dims[i + 1 :]
    if isinstance(index, torch.Tensor):
        made = at_known(x, i, index.reshape(-1))
        return made if index.ndim == 1 else reshaped(made, [*before, *index.shape, *after])
    d, shape = known_size(x, i), list(index.dims)
    if all(isinstance(n, int) for n in shape):
        flat = reshaped(index, [1] * i + [math.prod(n for n in shape if isinstance(n, int))] + [1] * len(after))
        return reshaped(gathered(x, i, flat, wraps=True), [*before, *shape, *after])
    # one choice for each page: its axes come before that of x, along which one element is chosen
    spread = reshaped(x, [*before, *[1] * len(shape), d, *after])
    made = gathered(spread, i + len(shape), reshaped(index, [*[1] * i, *shape, 1, *[1] * len(after)]), wraps=True)
    return reshaped(made, [*before, *shape, *after])


def _at_together(x: vTensor, over: list[int], indices: list[Any]) -> vTensor:
    """Several axes replaced by the common axes of their indices: in place where they are neighbours, else in front."""
    if any(isinstance(index, vTensor) for index in indices):
        raise refuse("several index lists, some of them traced", "one traced index at a time: x[:, i][..., j]")
    try:
        indices = list(torch.broadcast_tensors(*indices))  # type: ignore[no-untyped-call]
    except RuntimeError:
        shapes = " and ".join(str(list(index.shape)) for index in indices)
        raise refuse(f"index lists of shapes {shapes}", "lists of one length") from None
    sizes = [known_size(x, a) for a in over]
    neighbours = over == list(range(over[0], over[0] + len(over)))
    first = over[0] if neighbours else 0
    rest = [a for a in range(x.ndim) if a not in over]
    x = permuted(x, [*rest[:first], *over, *rest[first:]])
    at = torch.zeros_like(indices[0])
    for index, d, a in zip(indices, sizes, over, strict=True):
        wrong = [int(k) for k in index.reshape(-1) if not -d <= int(k) < d]
        if wrong:
            raise refuse(f"index {wrong[0]} of axis {a} of size {d}", f"indices from {-d} to {d - 1}")
        at = at * d + index % max(d, 1)
    merged = reshaped(x, [*x.dims[:first], math.prod(sizes), *x.dims[first + len(over) :]])
    return at_indices(merged, first, at)


# functions ---------------------------------------------------------------------------------------


@traces("index_select", to="flow.gather, or flow.slice where evenly spaced")
def index_select(input: Any, dim: Any, index: Any) -> vTensor:
    """Elements of an axis other than the pages at a list of indices."""
    x, at = lift(input), known(index)
    i = axis(dim, x.ndim)
    if at is not None and at.ndim == 1 and at.dtype != torch.bool:
        if any(int(k) < 0 for k in at):
            raise refuse(f"index {int(at.min())}", "indices from 0: index_select does not count from the end")
        return at_known(x, i, at)
    if at is not None or lift(index).ndim != 1 or lift(index).type.page_axis is not None:
        raise refuse(f"the index is {list(index.shape)}", "one axis of integers")
    traced = lift(index)
    return gathered(x, i, reshaped(traced, [traced.dims[0] if j == i else 1 for j in range(x.ndim)]), wraps=False)


@traces("take_along_dim", to="flow.gather")
def take_along_dim(input: Any, indices: Any, dim: Any = None) -> vTensor:
    """Elements of an axis at an index each; beside the axis the two broadcast."""
    x, index = lift(input), lift(indices)
    if dim is None:
        return gathered(flatten(x), 0, flatten(index), wraps=False)
    if x.ndim != index.ndim:
        raise refuse(f"{x.type} and its indices {index.type} differ in rank", "indices of the rank of the tensor")
    return gathered(x, axis(dim, x.ndim), index, wraps=False)


@traces("gather", to="flow.gather, flow.slice")
def gather(input: Any, dim: Any, index: Any, *, sparse_grad: bool = False) -> vTensor:
    """Elements of an axis at an index each; beside the axis the indices may be fewer, not more."""
    x, at = lift(input), lift(index)
    i = axis(dim, x.ndim)
    if x.ndim != at.ndim:
        raise refuse(f"{x.type} and its indices {at.type} differ in rank", "indices of the rank of the tensor")
    for a, (d, n) in enumerate(zip(x.dims, at.dims, strict=True)):
        if a == i or d == n:
            continue
        if isinstance(d, Sym) or isinstance(n, Sym) or n > d:
            raise refuse(f"indices {at.type} for {x.type}", "take_along_dim, which broadcasts; gather does not")
        x = sliced(x, a, 0, n)
    return gathered(x, i, at, wraps=False)


@traces("take", to="flow.reshape, flow.gather")
def take(input: Any, index: Any) -> vTensor:
    """Elements of the flattened tensor at indices of any shape."""
    x = flatten(lift(input))
    at = known(index)
    return at_indices(x, 0, lift(index) if at is None else at)
