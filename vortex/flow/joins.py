"""Several tensors as one, along axes other than the pages."""

from __future__ import annotations

from typing import Any

from vortex.errors import SYMBOLIC_SIZE
from vortex.flow.axes import axes, axis, number
from vortex.flow.casts import cast
from vortex.flow.integers import Whole
from vortex.flow.logic import as_bool
from vortex.flow.optable import traces
from vortex.flow.padded import shifted
from vortex.flow.repetition import expanded
from vortex.flow.shapes import flatten, sliced, unsqueeze
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import active, emit, fail, refuse
from vortex.ir.dialects import flow
from vortex.ir.types import Dim, Sym, bool_


def _joined(parts: list[vTensor], i: int) -> vTensor:
    if len(parts) == 1:
        return parts[0]
    if any(isinstance(p.dims[i], Sym) for p in parts if i < p.ndim):
        raise fail(SYMBOLIC_SIZE, what="joining along the page axis")
    shapes = [tuple(d for j, d in enumerate(p.dims) if j != i) for p in parts]
    if any(p.ndim != parts[0].ndim or s != shapes[0] for p, s in zip(parts, shapes, strict=True)):
        raise refuse(" and ".join(str(p.type) for p in parts) + f" differ beside axis {i}", "equal sizes beside it")
    if any(p.type.dtype == bool_ for p in parts) and not all(p.type.dtype == bool_ for p in parts):
        raise refuse("a bool joined with numbers", "mask.float()")
    return emit(flow.Concat, tuple(parts), axis=i)


def _parts(tensors: Any) -> list[vTensor]:
    parts = [lift(t) for t in tensors]
    if not parts:
        raise refuse("no tensors", "at least one")
    return parts


@traces("cat", "concat", "concatenate", to="flow.concat")
def cat(tensors: Any, dim: Any = 0) -> vTensor:
    """One after another along an axis."""
    parts = _parts(tensors)
    return _joined(parts, axis(dim, parts[0].ndim))


@traces("stack", to="flow.reshape, flow.concat")
def stack(tensors: Any, dim: Any = 0) -> vTensor:
    """One after another along a new axis."""
    parts = _parts(tensors)
    i = axis(dim, parts[0].ndim + 1)
    if any(p.dims != parts[0].dims for p in parts):
        raise refuse(" and ".join(str(p.type) for p in parts) + " differ", "equal shapes")
    return _joined([unsqueeze(p, i) for p in parts], i)


@traces("roll", to="flow.slice, flow.concat; flow.shift over pages")
def roll(input: Any, shifts: Any, dims: Any = None) -> vTensor:
    """Elements moved along axes, those that fall off put back at the other end."""
    x = lift(input)
    if dims is None or dims == () or dims == []:
        return roll(flatten(x), shifts, 0).reshape(x.shape)
    by = shifts if isinstance(shifts, tuple | list) else (shifts,)
    over = axes(dims, x.ndim)
    if len(by) != len(over):
        raise refuse(f"{len(by)} shifts for {len(over)} axes", "one shift for each axis")
    for n, i in zip(by, over, strict=True):
        d = x.dims[i]
        if isinstance(d, Sym):
            x = shifted(x, number(n, "the shift"), "wrap")
            continue
        n = number(n, "the shift") % d if d else 0
        if n:
            x = _joined([sliced(x, i, d - n, n), sliced(x, i, 0, d - n)], i)
    return x


def padded_with(x: vTensor, i: int, before: int, after: int, fill: float) -> vTensor:
    """A number before and after an axis other than the pages; negative amounts cut."""
    if not before and not after:
        return x
    d = x.dims[i]
    assert isinstance(d, int)
    if before < 0 or after < 0:
        first, last = max(-before, 0), d - max(-after, 0)
        if last < first:
            raise refuse(f"cutting {-before} and {-after} of {d}", "no more than there is")
        x, d = sliced(x, i, first, last - first), last - first
    known = active().integers
    whole = known.of(x.value)
    parts = [filled([*x.dims[:i], n, *x.dims[i + 1 :]], fill) if n > 0 else None for n in (before, after)]
    for part in parts:
        if part is not None and whole is not None:  # a number takes the integer type of the tensor around which it is
            known.know(part.value, Whole(whole.dtype, int(fill), int(fill)))
    return _joined([p for p in (parts[0], x, parts[1]) if p is not None], i)


def filled(shape: list[Dim], fill: float) -> vTensor:
    """One number everywhere."""
    return expanded(lift(fill), shape)


def full_of(x: vTensor, fill: float, shape: list[Dim]) -> vTensor:
    """One number everywhere, of the element type of ``x``."""
    dtype = x.type.dtype
    number: Any = bool(fill) if dtype == bool_ else float(fill) if dtype.is_float else int(fill)
    made = filled(shape, number)
    return made if dtype.is_float or dtype == bool_ else cast(made, x.dtype)


@traces("diff", to="flow.slice, flow.sub")
def diff(input: Any, n: Any = 1, dim: Any = -1) -> vTensor:
    """Differences of neighbours along an axis other than the pages."""
    x = lift(input)
    i = axis(dim, x.ndim)
    for _ in range(number(n, "n")):
        d = x.dims[i]
        if isinstance(d, Sym):
            why = "the differences of S pages are S - 1"
            raise refuse(why, "x - x.roll(1, dim), or x - F.pad(x, (1, 0))[..., :-1]: one for each page")
        left, right = sliced(x, i, 0, max(d - 1, 0)), sliced(x, i, 1, max(d - 1, 0))
        x = as_bool(left) ^ as_bool(right) if x.type.dtype == bool_ else right - left
    return x


@traces("broadcast_tensors", to="flow.broadcast")
def broadcast_tensors(*tensors: Any) -> tuple[vTensor, ...]:
    """All repeated to their common shape."""
    parts = _parts(tensors[0] if len(tensors) == 1 and isinstance(tensors[0], tuple | list) else tensors)
    rank, shape = max(p.ndim for p in parts), []
    for back in range(rank, 0, -1):
        sizes = {p.dims[-back] for p in parts if p.ndim >= back} - {1}
        if len(sizes) > 1:
            raise refuse(" and ".join(str(p.type) for p in parts) + " do not broadcast", "sizes equal or 1")
        shape.append(sizes.pop() if sizes else 1)
    return tuple(expanded(p, shape) for p in parts)


@traces("hstack", to="flow.concat")
def hstack(tensors: Any) -> vTensor:
    """One after another along the second axis; vectors along their only one."""
    parts = _parts(tensors)
    return _joined(parts, 1 if parts[0].ndim > 1 else 0)


@traces("vstack", to="flow.reshape, flow.concat")
def vstack(tensors: Any) -> vTensor:
    """One after another along the first axis; vectors as rows."""
    return _joined([unsqueeze(p, 0) if p.ndim == 1 else p for p in _parts(tensors)], 0)
