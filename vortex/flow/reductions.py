"""Folds along axes: sums, extremes, statistics, softmax, running folds. The page axis is an axis like others."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from vortex.flow.axes import axes, axis
from vortex.flow.casts import cast, integer
from vortex.flow.logic import as_bool, is_int, where
from vortex.flow.optable import traces
from vortex.flow.shapes import unsqueeze
from vortex.flow.tensor import NoIndices, PageDim, lift, vTensor
from vortex.flow.tracer import active, emit, refuse
from vortex.ir.dialects import flow
from vortex.ir.types import Sym, bool_, i32


class Extreme(NamedTuple):
    """What torch returns from max(dim), min(dim), cummax and cummin."""

    values: vTensor
    indices: Any


class MinMax(NamedTuple):
    """What torch.aminmax returns."""

    min: vTensor
    max: vTensor


def fold(op: type[flow.Reduce], x: vTensor, dim: Any, keepdim: bool) -> vTensor:
    """Reduce the axes; a fold over none of them is x itself."""
    listed = axes(dim, x.ndim)
    if not listed:
        return integer(x, active().integers.sums) if is_int(x) and op.folds in ("sum", "prod") else x
    made = emit(op, x, axes=tuple(sorted(listed)), keepdims=bool(keepdim))
    extreme = issubclass(op, flow.ReduceMax | flow.ReduceMin)
    return as_bool(made) if extreme and x.type.dtype == bool_ else made


def _most(op: type[flow.Reduce], x: vTensor, dim: Any, keepdim: bool) -> vTensor:
    """The extreme of axes that have elements, which torch asks for."""
    if any(x.dims[i] == 0 for i in axes(dim, x.ndim)):
        raise refuse(f"the extreme of no elements of {x.type}", "axes with elements")
    return fold(op, x, dim, keepdim)


def count(x: vTensor, dim: Any) -> Any:
    """How many elements are folded: an integer, or one computed from the page count."""
    n: int = 1
    pages: Sym | None = None
    for a in axes(dim, x.ndim):
        d = x.dims[a]
        n, pages = (n, d) if isinstance(d, Sym) else (n * d, pages)
    return lift(PageDim(pages)) * n if pages is not None else n


def _typed(x: vTensor, dtype: torch.dtype | None) -> vTensor:
    if dtype is None:
        return x
    if dtype.is_floating_point and dtype.itemsize < 4:  # how often torch rounds on the way depends on its kernel
        works = f"x.to({dtype}) rounds the numbers, .to({dtype}) of the result that; between them it is fp32"
        raise refuse(f"{dtype} is no type to compute in", works)
    return cast(x, dtype)


@traces("sum", to="flow.reduce_sum")
def sum_(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> vTensor:
    """Sum over axes."""
    with active().integers.summing(dtype):
        return fold(flow.ReduceSum, _typed(lift(input), dtype), dim, keepdim)


@traces("mean", to="flow.reduce_mean")
def mean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> vTensor:
    """Mean over axes."""
    x = _typed(lift(input), dtype)
    if is_int(x):
        raise refuse(f"the mean of {x.type} is not an integer", "x.float().mean()")
    return fold(flow.ReduceMean, x, dim, keepdim)


@traces("prod", to="flow.reduce_prod")
def prod(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> vTensor:
    """Product over one axis or all."""
    with active().integers.summing(dtype):
        return fold(flow.ReduceProd, _typed(lift(input), dtype), dim, keepdim)


@traces("amax", to="flow.reduce_max")
def amax(input: Any, dim: Any = (), keepdim: bool = False) -> vTensor:
    """Largest over axes."""
    return _most(flow.ReduceMax, lift(input), dim, keepdim)


@traces("amin", to="flow.reduce_min")
def amin(input: Any, dim: Any = (), keepdim: bool = False) -> vTensor:
    """Smallest over axes."""
    return _most(flow.ReduceMin, lift(input), dim, keepdim)


@traces("max", to="flow.reduce_max, flow.maximum")
def max_(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
    """Largest of all; of an axis, with .values; or of two tensors."""
    return _extreme("max", flow.ReduceMax, flow.Maximum, lift(input), dim, keepdim, other)


@traces("min", to="flow.reduce_min, flow.minimum")
def min_(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
    """Smallest of all; of an axis, with .values; or of two tensors."""
    return _extreme("min", flow.ReduceMin, flow.Minimum, lift(input), dim, keepdim, other)


def place_of_extreme(x: vTensor, extreme: vTensor, i: int, keepdim: bool) -> vTensor:
    """Where along axis ``i`` its largest or smallest element first stands: a NaN if there is one."""
    d = x.dims[i]
    assert isinstance(d, int)
    places = lift(torch.arange(d).reshape([d] + [1] * (x.ndim - i - 1)))
    here = x == extreme
    here = here if is_int(x) else here | x.isnan()
    return fold(flow.ReduceMin, where(here, places, d - 1), i, keepdim)


def _extreme(
    name: str, op: type[flow.Reduce], pair: type[flow.Binary], x: vTensor, dim: Any, keepdim: bool, other: Any
) -> Any:
    other = dim if isinstance(dim, vTensor | torch.Tensor) else other
    if other is not None:
        return emit(pair, x, lift(other))
    if dim is None:
        return _most(op, x, None, False)
    i = axis(dim, x.ndim)
    if not x.ndim or isinstance(x.dims[i], Sym):
        return Extreme(fold(op, x, i, keepdim), NoIndices(f"{name}(dim) over pages" if x.ndim else f"{name}(dim)"))
    values = _most(op, x, i, keepdim)
    return Extreme(values, place_of_extreme(x, values if keepdim else unsqueeze(values, i), i, keepdim))


@traces("aminmax", to="flow.reduce_min, flow.reduce_max")
def aminmax(input: Any, *, dim: Any = None, keepdim: bool = False) -> MinMax:
    """Smallest and largest."""
    x = lift(input)
    return MinMax(_most(flow.ReduceMin, x, dim, keepdim), _most(flow.ReduceMax, x, dim, keepdim))


@traces("any", to="sum(x != 0) != 0")
def any_(input: Any, dim: Any = None, keepdim: bool = False) -> vTensor:
    """Whether any element is true; False over nothing."""
    return _count(as_bool(lift(input)), dim, keepdim) != 0


@traces("all", to="sum(x == 0) == 0")
def all_(input: Any, dim: Any = None, keepdim: bool = False) -> vTensor:
    """Whether every element is true; True over nothing."""
    return _count(emit(flow.Not, as_bool(lift(input))), dim, keepdim) == 0


def _count(mask: vTensor, dim: Any, keepdim: bool) -> vTensor:
    """How many hold, modulo 2^32: enough to tell none from some. Over no axes at all, each by itself."""
    if dim == () or dim == []:
        return emit(flow.Cast, mask, to=i32)
    with active().integers.summing(torch.int32):
        return fold(flow.ReduceSum, emit(flow.Cast, mask, to=i32), dim, keepdim)


def count_of(mask: vTensor, dim: Any, dtype: torch.dtype) -> vTensor:
    """How many of a mask hold along axes, as int32 or int64."""
    with active().integers.summing(dtype):
        return fold(flow.ReduceSum, emit(flow.Cast, mask, to=i32), dim, False)


@traces("count_nonzero", to="sum(x != 0)")
def count_nonzero(input: Any, dim: Any = None, keepdim: bool = False) -> vTensor:
    """How many elements are not 0."""
    return fold(flow.ReduceSum, emit(flow.Cast, as_bool(lift(input)), to=i32), dim, keepdim)


@traces("var", to="sum((x - mean) ** 2) / max(n - correction, 0)")
def var(
    input: Any, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float | None = None
) -> vTensor:
    """Variance; over n - 1 unless correction or unbiased says otherwise."""
    x = lift(input)
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    less = (1 if unbiased is None else int(unbiased)) if correction is None else correction
    away = x - fold(flow.ReduceMean, x, dim, True)
    total = fold(flow.ReduceSum, away * away, dim, keepdim)
    left = count(x, dim) - less
    return total / (left.clamp(min=0) if isinstance(left, vTensor) else float(max(left, 0)))


@traces("std", to="sqrt(var)")
def std(
    input: Any, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float | None = None
) -> vTensor:
    """Square root of the variance."""
    return var(input, dim, unbiased, keepdim, correction=correction).sqrt()


@traces("logsumexp", "special.logsumexp", to="max + log(sum(exp(x - max)))")
def logsumexp(input: Any, dim: Any, keepdim: bool = False) -> vTensor:
    """log(sum(exp(x))) without overflow."""
    x = lift(input)
    if dim == () or dim == []:
        raise refuse("no axes", "an axis, or several: logsumexp(x, (0, 1))")
    x = x * 1 if x.type.dtype == bool_ else x
    top = fold(flow.ReduceMax, x, dim, True)
    top = where(top.abs() == math.inf, 0.0, top)
    total = fold(flow.ReduceSum, (x - top).exp(), dim, True).log() + top
    return total if keepdim else total.squeeze(axes(dim, x.ndim))


@traces("softmax", "F.softmax", "special.softmax", to="flow.softmax")
def softmax(input: Any, dim: Any = None, dtype: torch.dtype | None = None) -> vTensor:
    """exp(x) / sum(exp(x)) along an axis."""
    x = _typed(lift(input), dtype)
    if dim is None:
        raise refuse("dim is not given", "softmax(x, dim)")
    i = axis(dim, x.ndim)
    return emit(flow.Softmax, x, axis=i) if x.ndim else x * 0.0 + 1.0


@traces("F.softmin", to="softmax(-x)")
def softmin(input: Any, dim: Any = None) -> vTensor:
    """softmax(-x)"""
    return softmax(-lift(input), dim)


@traces("log_softmax", "F.log_softmax", "special.log_softmax", to="x - max - log(sum(exp(x - max)))")
def log_softmax(input: Any, dim: Any = None, dtype: torch.dtype | None = None) -> vTensor:
    """log(softmax(x)) along an axis."""
    x = _typed(lift(input), dtype)
    if dim is None:
        raise refuse("dim is not given", "log_softmax(x, dim)")
    away = x - fold(flow.ReduceMax, x, axis(dim, x.ndim), True)
    return away - fold(flow.ReduceSum, away.exp(), axis(dim, x.ndim), True).log()


def _scan(x: vTensor, dim: Any, kind: str) -> vTensor:
    made = emit(flow.Scan, x, axis=axis(dim, x.ndim), kind=kind)
    return as_bool(made) if kind in ("max", "min") and x.type.dtype == bool_ else made


@traces("cumsum", to="flow.scan")
def cumsum(input: Any, dim: Any, *, dtype: torch.dtype | None = None) -> vTensor:
    """Running sum."""
    with active().integers.summing(dtype):
        return _scan(_typed(lift(input), dtype), dim, "sum")


@traces("cumprod", to="flow.scan")
def cumprod(input: Any, dim: Any, *, dtype: torch.dtype | None = None) -> vTensor:
    """Running product."""
    with active().integers.summing(dtype):
        return _scan(_typed(lift(input), dtype), dim, "prod")


@traces("cummax", to="flow.scan")
def cummax(input: Any, dim: Any) -> Extreme:
    """Running maximum, as .values."""
    return Extreme(_scan(lift(input), dim, "max"), NoIndices("cummax"))


@traces("cummin", to="flow.scan")
def cummin(input: Any, dim: Any) -> Extreme:
    """Running minimum, as .values."""
    return Extreme(_scan(lift(input), dim, "min"), NoIndices("cummin"))


@traces("nansum", to="sum where not NaN")
def nansum(input: Any, dim: Any = None, keepdim: bool = False) -> vTensor:
    """Sum of what is not NaN."""
    x = lift(input)
    return fold(flow.ReduceSum, x if is_int(x) else where(x.isnan(), 0.0, x), dim, keepdim)


@traces("nanmean", to="sum where not NaN / their number")
def nanmean(input: Any, dim: Any = None, keepdim: bool = False) -> vTensor:
    """Mean of what is not NaN."""
    x = lift(input)
    return nansum(x, dim, keepdim) / count_nonzero(emit(flow.Not, x.isnan()), dim, keepdim)
