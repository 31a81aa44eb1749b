"""Order along axes of known size: sorting, ranks and counts. Pages are ordered by ``vortex.topk`` alone.

NaN counts as larger than every number and -0 equals +0, as in torch. Where torch leaves it open which of equal elements
comes first (``topk``, ``kthvalue``, sorts that are not stable), it is the one with the lower index, also in the oracle.
"""

from __future__ import annotations

from typing import Any

import torch

from vortex.errors import UNKNOWN_TORCH_OP
from vortex.flow.axes import axis, number
from vortex.flow.elementwise import lerp
from vortex.flow.gathers import gathered
from vortex.flow.logic import is_int, where
from vortex.flow.optable import traces
from vortex.flow.reductions import Extreme, count_of, fold, place_of_extreme
from vortex.flow.shapes import flatten, picked, reshaped, sliced
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import active, emit, fail, refuse
from vortex.ir.dialects import flow
from vortex.ir.types import Sym, bool_

MOST = 1024
"""Elements of an axis that is sorted: every pair of them is compared."""


def ordered_axis(x: vTensor, dim: Any) -> int:
    """The axis to be ordered: of known size, and small enough to compare every pair."""
    i = axis(dim, x.ndim)
    d = x.dims[i] if x.ndim else 1
    if isinstance(d, Sym):
        raise fail(UNKNOWN_TORCH_OP, name=f"{active().call} over pages", nearest="; vortex.topk(score) orders pages")
    if d > MOST:
        raise refuse(f"sorting an axis of {d}", f"at most {MOST} elements; amax, mean and logsumexp summarise more")
    return i


def _numbers(x: vTensor) -> vTensor:
    if x.type.dtype == bool_:
        raise refuse("torch does not order bools", "mask.int()")
    return x


def _sorted(x: vTensor, i: int, descending: bool) -> Extreme:
    if not x.ndim:
        index = lift(torch.tensor([0]))
        return Extreme(x, reshaped(index, []))
    index = emit(flow.ArgSort, x, axis=i, descending=bool(descending))
    return Extreme(gathered(x, i, index, wraps=False), index)


@traces("argsort", to="flow.argsort")
def argsort(input: Any, dim: Any = -1, descending: bool = False, stable: bool = False) -> vTensor:
    """Where the elements of an axis stand in order; equal ones by index."""
    x = lift(input)
    indices: vTensor = _sorted(x, ordered_axis(x, dim), descending).indices
    return indices


@traces("sort", to="flow.argsort, flow.gather")
def sort(input: Any, dim: Any = -1, descending: bool = False, stable: bool = False) -> Extreme:
    """Elements of an axis in order, and where they stood; NaN is largest."""
    x = lift(input)
    return _sorted(x, ordered_axis(x, dim), descending)


@traces("msort", to="flow.argsort, flow.gather")
def msort(input: Any) -> vTensor:
    """Elements of the first axis in order."""
    x = lift(input)
    return _sorted(x, ordered_axis(x, 0), False).values


@traces("topk", to="flow.argsort, flow.slice, flow.gather")
def topk(input: Any, k: Any, dim: Any = -1, largest: bool = True, sorted: bool = True) -> Extreme:
    """The k largest (or smallest) of an axis in order, and where they stood; NaN is largest, equal ones by index."""
    x, n = _numbers(lift(input)), number(k, "k")
    i = ordered_axis(x, dim)
    d = x.dims[i] if x.ndim else 1
    assert isinstance(d, int)
    if not 0 <= n <= d:
        raise refuse(f"k={n} of an axis of {d}", f"k from 0 to {d}")
    if not x.ndim:
        return _sorted(x, i, largest)
    index = sliced(emit(flow.ArgSort, x, axis=i, descending=bool(largest)), i, 0, n)
    return Extreme(gathered(x, i, index, wraps=False), index)


def _ranked(x: vTensor, i: int, rank: int, keepdim: bool) -> Extreme:
    """The element of that rank, from 0, and where it stood."""
    values, indices = _sorted(x, i, False)
    if not x.ndim:
        return Extreme(values, indices)
    value, index = sliced(values, i, rank, 1), sliced(indices, i, rank, 1)
    return Extreme(value, index) if keepdim else Extreme(picked(value, i, 0), picked(index, i, 0))


@traces("kthvalue", to="flow.argsort, flow.gather")
def kthvalue(input: Any, k: Any, dim: Any = -1, keepdim: bool = False) -> Extreme:
    """The k-th smallest of an axis, from 1, and where it stood; NaN is largest."""
    x, n = _numbers(lift(input)), number(k, "k")
    i = ordered_axis(x, dim)
    d = x.dims[i] if x.ndim else 1
    if not 1 <= n <= d:  # type: ignore[operator]
        raise refuse(f"k={n} of an axis of {d}", f"k from 1 to {d}")
    return _ranked(x, i, n - 1, keepdim)


@traces("median", to="flow.argsort, flow.gather")
def median(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The middle element of an axis, the lower of two, and where it stood; NaN if any is."""
    x = _numbers(lift(input))
    if dim is None:
        return median(flatten(x), 0).values
    i = ordered_axis(x, dim)
    d = x.dims[i] if x.ndim else 1
    assert isinstance(d, int)
    if not d:
        raise refuse(f"the median of no elements along axis {i} of {x.type}", "an axis with elements")
    middle = _ranked(x, i, (d - 1) // 2, keepdim)
    if is_int(x) or not x.ndim:
        return middle
    odd = fold(flow.ReduceMax, x, i, keepdim)  # NaN where any is
    first = place_of_extreme(x, fold(flow.ReduceMax, x, i, True), i, keepdim)
    return Extreme(where(odd.isnan(), odd, middle.values), where(odd.isnan(), first, middle.indices))


@traces("argmax", to="flow.reduce_max, flow.reduce_min")
def argmax(input: Any, dim: Any = None, keepdim: bool = False) -> vTensor:
    """Where the largest of an axis stands, the first of equal ones; a NaN if there is one."""
    return _arg(flow.ReduceMax, lift(input), dim, keepdim)


@traces("argmin", to="flow.reduce_min")
def argmin(input: Any, dim: Any = None, keepdim: bool = False) -> vTensor:
    """Where the smallest of an axis stands, the first of equal ones; a NaN if there is one."""
    return _arg(flow.ReduceMin, lift(input), dim, keepdim)


def _arg(op: type[flow.Reduce], x: vTensor, dim: Any, keepdim: bool) -> vTensor:
    x = _numbers(x)
    if dim is None:
        flat = flatten(x)
        return reshaped(_arg(op, flat, 0, False), [1] * x.ndim if keepdim else [])
    i = axis(dim, x.ndim)
    x = x if x.ndim else reshaped(x, [1])
    if isinstance(d := x.dims[i], Sym):
        raise fail(UNKNOWN_TORCH_OP, name=f"{active().call} over pages", nearest="; vortex.topk(score) orders pages")
    if not d:
        raise refuse(f"the extreme of no elements along axis {i} of {x.type}", "an axis with elements")
    return place_of_extreme(x, fold(op, x, i, True), i, keepdim)


@traces("quantile", to="flow.argsort, flow.gather")
def quantile(input: Any, q: Any, dim: Any = None, keepdim: bool = False, *, interpolation: str = "linear") -> vTensor:
    """Between the two elements of an axis that stand around the share q of it; NaN if any is."""
    x = lift(input)
    if not isinstance(q, int | float) or isinstance(q, bool) or not 0 <= q <= 1:
        raise refuse(f"q={q!r}", "a Python number from 0 to 1; call it once for each")
    if is_int(x) or interpolation != "linear":
        raise refuse(f"interpolation={interpolation!r} of {x.type.dtype}", "x.float() and interpolation='linear'")
    if dim is None:
        x, dim = flatten(x), 0
    i = ordered_axis(x, dim)
    d = x.dims[i]
    assert isinstance(d, int)
    place = torch.tensor(float(q)) * (d - 1)  # in fp32, as torch counts
    below = int(place.floor())
    values = _sorted(x, i, False).values
    low, high = (sliced(values, i, k, 1) for k in (below, min(below + 1, d - 1)))
    between = lerp(low, high, float(place - below))
    found = where(fold(flow.ReduceMax, x, i, True).isnan(), float("nan"), between)
    return found if keepdim else picked(found, i, 0)


@traces("bucketize", to="sum(~(boundaries >= x))")
def bucketize(input: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> vTensor:
    """How many of the boundaries, sorted on one axis, lie below x or, with right, not above; NaN is above all."""
    x, edges = lift(input), lift(boundaries)
    if edges.ndim != 1 or edges.type.page_axis is not None:
        raise refuse(f"the boundaries are {edges.type}", "one axis of sorted numbers")
    above = emit(flow.Gt if right else flow.Ge, edges, reshaped(x, [*x.dims, 1]))
    return count_of(emit(flow.Not, above), -1, torch.int32 if out_int32 else torch.int64)


@traces("searchsorted", to="sum(~(sequence >= x))")
def searchsorted(
    sorted_sequence: Any, input: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None
) -> vTensor:
    """Where x would stand in a sorted sequence of one axis, before equal elements or, with right, behind them."""
    if side not in (None, "left", "right") or (side == "left" and right):
        raise refuse(f"side={side!r} and right={right}", "side='left' or 'right'")
    return bucketize(input, sorted_sequence, out_int32=out_int32, right=right or side == "right")
