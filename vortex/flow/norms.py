"""Lengths of vectors, and tensors scaled by them."""

from __future__ import annotations

import math
from typing import Any

import torch

from vortex.flow.axes import axes, size
from vortex.flow.elementwise import clamp
from vortex.flow.logic import is_int
from vortex.flow.optable import traces
from vortex.flow.reductions import count_nonzero, fold
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import emit, refuse
from vortex.ir.dialects import flow


@traces("linalg.vector_norm", to="reduce of |x| ** ord")
def vector_norm(input: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False) -> vTensor:
    """(sum |x| ** ord) ** (1 / ord); the largest or smallest |x| for +-inf, the count of non-zeros for 0."""
    x = lift(input)
    if isinstance(ord, str) or not isinstance(ord, int | float):
        raise refuse(f"ord={ord!r} is a matrix norm", "a number: 1, 2, math.inf, ...")
    if is_int(x):
        raise refuse(f"the norm of {x.type} is not an integer", "x.float()")
    if ord == 2:
        return fold(flow.ReduceSum, x * x, dim, keepdim).sqrt()
    if ord == 1:
        return fold(flow.ReduceSum, x.abs(), dim, keepdim)
    if abs(ord) == math.inf:
        return fold(flow.ReduceMax if ord > 0 else flow.ReduceMin, x.abs(), dim, keepdim)
    if ord == 0:
        return count_nonzero(x, dim, keepdim).float()
    return fold(flow.ReduceSum, x.abs() ** ord, dim, keepdim) ** (1.0 / ord)


@traces("norm", to="vector norm")
def norm(input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False) -> vTensor:
    """Vector norm over axes, all of them when none is given."""
    return vector_norm(input, 2 if p in ("fro", None) else p, dim, keepdim)


@traces("linalg.norm", to="vector norm")
def linalg_norm(input: Any, ord: Any = None, dim: Any = None, keepdim: bool = False) -> vTensor:
    """Vector norm; a matrix norm (ord over two axes) is refused."""
    x = lift(input)
    if ord is not None and len(axes(dim, x.ndim)) != 1:
        raise refuse(f"ord={ord!r} over {len(axes(dim, x.ndim))} axes is a matrix norm", "one axis, or ord=None")
    return vector_norm(x, 2 if ord is None else ord, dim, keepdim)


@traces("F.normalize", to="x / max(norm, eps)")
def normalize(input: Any, p: Any = 2.0, dim: Any = 1, eps: float = 1e-12) -> vTensor:
    """Gives x divided by its norm along an axis."""
    x = lift(input)
    return x / clamp(vector_norm(x, p, dim, True), min=eps)


@traces("cosine_similarity", to="sum(a * b) / (max(|a|, eps) * max(|b|, eps))")
def cosine_similarity(x1: Any, x2: Any, dim: Any = 1, eps: float = 1e-8) -> vTensor:
    """Cosine of the angle between vectors along an axis."""
    a, b = lift(x1), lift(x2)
    product = a * b
    rank = product.ndim
    back = [d - rank for d in axes(dim, rank)]
    if any(-d > min(a.ndim, b.ndim) for d in back):
        raise refuse(f"axis {dim} is not in both {a.type} and {b.type}", "an axis that both have")
    lengths = [clamp(vector_norm(t, 2, back, True), min=eps) for t in (a, b)]
    return fold(flow.ReduceSum, (a / lengths[0]) * (b / lengths[1]), back, False)


def _trailing(x: vTensor, normalized_shape: Any) -> list[int]:
    """The axes that a normalized_shape covers."""
    shape = normalized_shape if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
    wanted = tuple(size(d) for d in shape)
    if not wanted or x.dims[-len(wanted) :] != wanted:
        raise refuse(f"normalized_shape {list(shape)} are not the last sizes of {x.type}", "e.g. x.shape[-1:]")
    return list(range(-len(wanted), 0))


@traces("layer_norm", "F.layer_norm", to="(x - mean) * rsqrt(var + eps) * weight + bias")
def layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> vTensor:
    """Normalised over the last axes, then scaled and shifted."""
    x = lift(input)
    over = _trailing(x, normalized_shape)
    away = x - fold(flow.ReduceMean, x, over, True)
    y = away * emit(flow.Rsqrt, fold(flow.ReduceMean, away * away, over, True) + eps)
    y = y if weight is None else y * lift(weight)
    return y if bias is None else y + lift(bias)


@traces("rms_norm", "F.rms_norm", to="x * rsqrt(mean(x * x) + eps) * weight")
def rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> vTensor:
    """Scaled to unit root mean square over the last axes."""
    x = lift(input)
    over = _trailing(x, normalized_shape)
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    y = x * emit(flow.Rsqrt, fold(flow.ReduceMean, x * x, over, True) + eps)
    return y if weight is None else y * lift(weight)
