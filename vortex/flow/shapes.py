"""The same elements under another shape, and parts of a tensor. Pages keep their axis and are never cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vortex.errors import SYMBOLIC_SIZE
from vortex.flow.axes import axes, axis, number, size, sizes
from vortex.flow.optable import traces
from vortex.flow.padded import Padded
from vortex.flow.tensor import PageDim, lift, vTensor
from vortex.flow.tracer import emit, fail, refuse
from vortex.ir.dialects import flow
from vortex.ir.types import Dim, Sym


def reshaped(x: vTensor, shape: Sequence[Dim]) -> vTensor:
    """Under another shape; nothing is emitted when it is the same one."""
    return x if tuple(shape) == x.dims else emit(flow.Reshape, x, shape=tuple(shape))


def _infer(x: vTensor, shape: list[Dim]) -> list[Dim]:
    """``shape`` with its -1 replaced: by S where the page axis is not named, else by what is left."""
    open_ = [i for i, d in enumerate(shape) if d == -1]
    if len(open_) > 1:
        raise refuse(f"{shape} has more than one -1", "at most one -1")
    if not open_:
        return shape
    known = math.prod(d for d in shape if isinstance(d, int) and d != -1)
    if x.type.pages is not None and x.type.pages not in shape:
        if known != x.type.numel:
            raise refuse(
                f"-1 in {flow.show(tuple(shape))} would be {x.type.numel}/{known} of the pages of {x.type}",
                "the page axis stays an axis of its own",
            )
        left: Dim = x.type.pages
    elif known == 0 or x.type.numel % known:
        raise refuse(f"{x.type} does not reshape to {flow.show(tuple(shape))}", "the same number of elements per page")
    else:
        left = x.type.numel // known
    return [left if d == -1 else d for d in shape]


@traces("Tensor.reshape", "Tensor.view", to="flow.reshape")
def reshape(self: Any, *shape: Any) -> vTensor:
    """Another shape in row-major order; -1 is inferred, also as the page axis."""
    x = lift(self)
    return reshaped(x, _infer(x, sizes(shape)))


@traces("torch.reshape", to="flow.reshape")
def torch_reshape(input: Any, shape: Any) -> vTensor:
    """Another shape in row-major order; -1 is inferred, also as the page axis."""
    return reshape(input, shape)


@traces("Tensor.view_as", "Tensor.reshape_as", to="flow.reshape")
def reshape_as(self: Any, other: Any) -> vTensor:
    """The shape of another tensor."""
    return reshape(self, other.shape)


def _merged(dims: tuple[Dim, ...]) -> Dim:
    inner = math.prod(d for d in dims if isinstance(d, int))
    pages = next((d for d in dims if isinstance(d, Sym)), None)
    if pages is None:
        return inner
    if inner != 1:
        raise refuse(f"flattening {flow.show(dims)} would mix the page axis with another", "flatten axes beside pages")
    return pages


@traces("flatten", to="flow.reshape")
def flatten(input: Any, start_dim: Any = 0, end_dim: Any = -1) -> vTensor:
    """Axes start to end as one."""
    x = lift(input)
    if not x.ndim:
        return reshaped(x, [1])
    first, last = axis(start_dim, x.ndim), axis(end_dim, x.ndim)
    if first > last:
        raise refuse(f"start_dim {start_dim} is after end_dim {end_dim}", "start_dim <= end_dim")
    return reshaped(x, [*x.dims[:first], _merged(x.dims[first : last + 1]), *x.dims[last + 1 :]])


@traces("ravel", to="flow.reshape")
def ravel(input: Any) -> vTensor:
    """All axes as one."""
    return flatten(input)


@traces("unflatten", to="flow.reshape")
def unflatten(input: Any, dim: Any, sizes: Any) -> vTensor:
    """One axis as several."""
    x = lift(input)
    i, parts = axis(dim, x.ndim), [size(d) for d in sizes]
    known = math.prod(d for d in parts if isinstance(d, int) and d != -1)
    whole = x.dims[i]
    if -1 in parts:
        if isinstance(whole, int) and (known == 0 or whole % known):
            raise refuse(f"axis {i} of {x.type} does not split into {parts}", "sizes whose product is the axis")
        parts = [(whole // known if isinstance(whole, int) else whole) if d == -1 else d for d in parts]
    return reshaped(x, [*x.dims[:i], *parts, *x.dims[i + 1 :]])


@traces("squeeze", to="flow.reshape")
def squeeze(input: Any, dim: Any = None) -> vTensor:
    """Without axes of size 1; the page axis always stays."""
    x = lift(input)
    over = axes(dim, x.ndim) if dim != () else ()
    return reshaped(x, [d for i, d in enumerate(x.dims) if i not in over or d != 1])


@traces("unsqueeze", to="flow.reshape")
def unsqueeze(input: Any, dim: Any) -> vTensor:
    """With an axis of size 1 before ``dim``."""
    x = lift(input)
    i = axis(dim, x.ndim + 1)
    return reshaped(x, [*x.dims[:i], 1, *x.dims[i:]])


def permuted(x: vTensor, perm: list[int]) -> vTensor:
    """Axes in another order; nothing is emitted when it is the same one."""
    return x if perm == list(range(x.ndim)) else emit(flow.Transpose, x, perm=tuple(perm))


@traces("transpose", "swapaxes", "swapdims", to="flow.transpose")
def transpose(input: Any, dim0: Any, dim1: Any) -> vTensor:
    """Two axes exchanged."""
    x = lift(input)
    perm, i, j = list(range(x.ndim)), axis(dim0, x.ndim), axis(dim1, x.ndim)
    if x.ndim:
        perm[i], perm[j] = perm[j], perm[i]
    return permuted(x, perm)


@traces("t", to="flow.transpose")
def t(input: Any) -> vTensor:
    """The transpose of a matrix; a vector as it is."""
    x = lift(input)
    if x.ndim > 2:
        raise refuse(f"{x.type} is not a matrix", "x.mT, or x.transpose(i, j)")
    return permuted(x, list(reversed(range(x.ndim))))


@traces("adjoint", to="flow.transpose")
def adjoint(input: Any) -> vTensor:
    """The last two axes exchanged (also .mT)."""
    x = lift(input)
    if x.ndim < 2:
        raise refuse(f"{x.type} has no two axes", "a matrix, or a batch of them")
    return transpose(x, -1, -2)


@traces("Tensor.permute", to="flow.transpose")
def permute(self: Any, *dims: Any) -> vTensor:
    """Axes in another order."""
    x = lift(self)
    listed = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    perm = [axis(d, x.ndim) for d in listed]
    if sorted(perm) != list(range(x.ndim)):
        raise refuse(f"{list(listed)} is not an order of the axes of {x.type}", "every axis once")
    return permuted(x, perm)


@traces("torch.permute", to="flow.transpose")
def torch_permute(input: Any, dims: Any) -> vTensor:
    """Axes in another order."""
    return permute(input, dims)


@traces("movedim", "moveaxis", to="flow.transpose")
def movedim(input: Any, source: Any, destination: Any) -> vTensor:
    """Axes moved to other places, the rest in order."""
    x = lift(input)
    from_, to = axes(source, x.ndim), axes(destination, x.ndim)
    if len(from_) != len(to):
        raise refuse(f"{source} and {destination} differ in number", "as many places as axes")
    perm = [i for i in range(x.ndim) if i not in from_]
    for place, i in sorted(zip(to, from_, strict=True)):
        perm.insert(place, i)
    return permuted(x, perm)


@traces("torch.numel", to="a Python integer, or one computed from the page count")
def numel(input: Any) -> Any:
    """How many elements there are."""
    return lift(input).numel()


# parts -------------------------------------------------------------------------------------------


def sliced(x: vTensor, i: int, start: int, count: int, step: int = 1) -> vTensor:
    """Part of an axis other than the pages."""
    d = x.dims[i]
    if isinstance(d, Sym):
        raise fail(SYMBOLIC_SIZE, what="a part of the page axis")
    if (start, count, step) == (0, d, 1):
        return x
    return emit(flow.Slice, x, axis=i, start=start if count else 0, size=count, step=step)


def picked(x: vTensor, i: int, index: Any) -> vTensor:
    """One element of an axis, which goes."""
    d = x.dims[i]
    if isinstance(d, Sym):
        raise fail(SYMBOLIC_SIZE, what="a single page")
    n = number(index, "the index")
    if not -d <= n < d:
        raise refuse(f"index {n} of axis {i} of {x.type}", f"an index from {-d} to {d - 1}")
    part = sliced(x, i, n % d, 1)
    return reshaped(part, [*part.dims[:i], *part.dims[i + 1 :]])


def sliced_by(x: vTensor, i: int, k: slice) -> vTensor:
    """``x[k]`` along axis ``i``."""
    d = x.dims[i]
    if isinstance(d, Sym):
        return x  # whatever leaves pages out was dealt with before
    limits = [None if b is None else number(b, "a slice bound") for b in (k.start, k.stop, k.step)]
    if limits[2] is not None and limits[2] < 1:
        raise refuse(f"step {limits[2]}", "a positive step; x.flip(dim) reverses")
    listed = range(*slice(*limits).indices(d))
    return sliced(x, i, listed.start, len(listed), listed.step)


@traces("select", to="flow.slice")
def select(input: Any, dim: Any, index: Any) -> vTensor:
    """One element of an axis, which goes."""
    x = lift(input)
    return picked(x, axis(dim, x.ndim), index)


@traces("narrow", to="flow.slice")
def narrow(input: Any, dim: Any, start: Any, length: Any) -> vTensor:
    """``length`` elements of an axis from ``start``."""
    if isinstance(input, Padded):
        return input.narrowed(dim, start, length)
    x = lift(input)
    i, first = axis(dim, x.ndim), number(start, "start")
    d = x.dims[i]
    if isinstance(d, Sym) and isinstance(length, PageDim) and not first:
        return x
    count = number(length, "length")
    return sliced(x, i, first + d if first < 0 and isinstance(d, int) else first, count)


def _known(x: vTensor, i: int, what: str) -> int:
    d = x.dims[i]
    if isinstance(d, Sym):
        raise fail(SYMBOLIC_SIZE, what=what)
    return d


@traces("split", "Tensor.split_with_sizes", to="flow.slice")
def split(tensor: Any, split_size_or_sections: Any, dim: Any = 0) -> tuple[vTensor, ...]:
    """Parts of one size, or of listed sizes."""
    x = lift(tensor)
    i = axis(dim, x.ndim)
    d = _known(x, i, "splitting the page axis")
    if isinstance(split_size_or_sections, tuple | list):
        parts = [number(p, "a part") for p in split_size_or_sections]
        if sum(parts) != d:
            raise refuse(f"parts {parts} of axis {i} of {x.type}", f"parts that sum to {d}")
    else:
        n = number(split_size_or_sections, "the part")
        if n < 1:
            raise refuse(f"parts of {n}", "at least 1")
        parts = [min(n, d - at) for at in range(0, d, n)]
    starts = [sum(parts[:j]) for j in range(len(parts))]
    return tuple(sliced(x, i, at, n) for at, n in zip(starts, parts, strict=True))


@traces("chunk", to="flow.slice")
def chunk(input: Any, chunks: Any, dim: Any = 0) -> tuple[vTensor, ...]:
    """At most ``chunks`` parts of one size."""
    x = lift(input)
    d, n = _known(x, axis(dim, x.ndim), "splitting the page axis"), number(chunks, "chunks")
    if n < 1:
        raise refuse(f"{n} chunks", "at least 1")
    return split(x, max(-(-d // n), 1), dim)


@traces("unbind", to="flow.slice")
def unbind(input: Any, dim: Any = 0) -> tuple[vTensor, ...]:
    """All elements of an axis."""
    x = lift(input)
    i = axis(dim, x.ndim)
    return tuple(picked(x, i, j) for j in range(_known(x, i, "unbinding the page axis")))


@traces("flip", to="flow.slice")
def flip(input: Any, *dims: Any) -> vTensor:
    """Axes reversed."""
    x = lift(input)
    listed = dims[0] if len(dims) == 1 else dims
    for i in axes(listed, x.ndim) if listed != () and listed != [] else ():
        d = _known(x, i, "reversing the page axis")
        x = x if d < 2 else sliced(x, i, d - 1, d, -1)
    return x
