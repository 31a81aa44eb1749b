"""Tensors repeated along axes: views that broadcast, and copies."""

from __future__ import annotations

from typing import Any

from vortex.errors import SYMBOLIC_SIZE
from vortex.flow.axes import axis, number, sizes
from vortex.flow.leaves import page_indices
from vortex.flow.optable import traces
from vortex.flow.shapes import flatten, reshaped
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import active, emit, fail, refuse
from vortex.ir.dialects import flow
from vortex.ir.types import Dim, Sym, bool_


def over_pages(x: vTensor, i: int, pages: Sym) -> vTensor:
    """One value for every page: x where the page index is >= 0, which always holds; its size-1 axis i becomes S."""
    index = page_indices(pages.blocks)
    if (listed := active().listed(pages)) is not None:
        index = emit(flow.Pick, index, vTensor(listed))
    every = reshaped(emit(flow.Ge, index, lift(0)), [pages if j == i else 1 for j in range(x.ndim)])
    none = lift(False) if x.type.dtype == bool_ else lift(0 if not x.type.dtype.is_float else 0.0)
    return emit(flow.Where, every, x, none)


def expanded(x: vTensor, shape: list[Dim]) -> vTensor:
    """Repeated along axes of size 1 and new leading ones; also along the page axis."""
    if tuple(shape) == x.dims:
        return x
    if len(shape) < x.ndim:
        raise refuse(f"{x.type} has more axes than {flow.show(tuple(shape))}", "at least as many sizes as axes")
    pages = next((d for d in shape if isinstance(d, Sym)), None)
    if pages is not None and x.type.page_axis is None:
        x = over_pages(reshaped(x, [*[1] * (len(shape) - x.ndim), *x.dims]), shape.index(pages), pages)
    return x if tuple(shape) == x.dims else emit(flow.Broadcast, x, shape=tuple(shape))


@traces("Tensor.expand", to="flow.broadcast")
def expand(self: Any, *shape: Any, implicit: bool = False) -> vTensor:
    """Repeated along axes of size 1; -1 keeps an axis."""
    x, wanted = lift(self), sizes(shape)
    new = len(wanted) - x.ndim
    if new < 0 or -1 in wanted[:new]:
        raise refuse(f"{x.type} to {flow.show(tuple(wanted))}", "a size for every axis; -1 only for existing ones")
    return expanded(x, [x.dims[j - new] if d == -1 else d for j, d in enumerate(wanted)])


@traces("broadcast_to", to="flow.broadcast")
def broadcast_to(input: Any, *size: Any) -> vTensor:
    """Repeated along axes of size 1."""
    return expand(input, *size)


@traces("Tensor.expand_as", to="flow.broadcast")
def expand_as(self: Any, other: Any) -> vTensor:
    """Repeated to the shape of another tensor."""
    return expand(self, *other.shape)


@traces("Tensor.repeat", to="flow.broadcast, flow.reshape")
def repeat(self: Any, *repeats: Any) -> vTensor:
    """The tensor several times along each axis."""
    x = lift(self)
    times = [number(n, "the repeats") for n in _flat(repeats)]
    if len(times) < x.ndim:
        raise refuse(f"{len(times)} repeats for {x.type}", "one for every axis")
    x = reshaped(x, [*[1] * (len(times) - x.ndim), *x.dims])
    for i, n in enumerate(times):
        x = _repeated(x, i, n, inner=False)
    return x


@traces("tile", to="flow.broadcast, flow.reshape")
def tile(input: Any, *dims: Any) -> vTensor:
    """The tensor several times along its last axes."""
    x, times = lift(input), _flat(dims)
    return repeat(x, *[1] * (x.ndim - len(times)), *times)


def _flat(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else args


def _repeated(x: vTensor, i: int, n: int, inner: bool) -> vTensor:
    """Axis i ``n`` times: whole after whole, or each element ``n`` times."""
    if n == 1:
        return x
    d = x.dims[i]
    if isinstance(d, Sym):
        raise fail(SYMBOLIC_SIZE, what="repeating the page axis")
    before, after = x.dims[:i], x.dims[i + 1 :]
    at, to = ((d, 1), (d, n)) if inner else ((1, d), (n, d))
    x = expanded(reshaped(x, [*before, *at, *after]), [*before, *to, *after])
    return reshaped(x, [*before, n * d, *after])


@traces("repeat_interleave", to="flow.broadcast, flow.reshape")
def repeat_interleave(input: Any, repeats: Any, dim: Any = None) -> vTensor:
    """Each element of an axis several times; the number is one integer."""
    x = lift(input)
    x = flatten(x) if dim is None else x
    return _repeated(x, axis(0 if dim is None else dim, x.ndim), number(repeats, "repeats"), inner=True)
