"""Arguments that name axes and sizes, read as torch reads them."""

from __future__ import annotations

import operator
from typing import Any

from vortex.errors import SYMBOLIC_SIZE
from vortex.flow.tensor import PageDim, vTensor
from vortex.flow.tracer import fail, refuse
from vortex.ir.types import Dim, Sym


def _integer(n: Any) -> int | None:
    """What Python takes as an integer; None for anything else, such as a real tensor of several elements."""
    try:
        return operator.index(n)
    except TypeError:
        return None


def axis(dim: Any, rank: int) -> int:
    """One axis of ``rank``, counted from 0."""
    if isinstance(dim, vTensor | PageDim | bool) or (i := _integer(dim)) is None:
        raise refuse(f"axis {dim!r} is not an integer", "an axis known while tracing")
    least = max(rank, 1)
    if not -least <= i < least:
        raise refuse(f"axis {i} of a tensor of rank {rank}", f"an axis from {-least} to {least - 1}")
    return i % least


def axes(dim: Any, rank: int) -> tuple[int, ...]:
    """One axis, several, or (None or nothing) all of them."""
    if dim is None or (isinstance(dim, tuple | list) and not dim):
        return tuple(range(rank))
    listed = tuple(axis(d, rank) for d in (dim if isinstance(dim, tuple | list) else (dim,)))
    if len(set(listed)) != len(listed):
        raise refuse(f"axis named twice in {dim}", "each axis once")
    return listed if rank else ()


def size(d: Any) -> Dim:
    """One size: an integer, or S."""
    if isinstance(d, PageDim):
        return d.axis
    if isinstance(d, Sym):
        return d
    if isinstance(d, vTensor):
        raise fail(SYMBOLIC_SIZE, what="a size computed from S")
    if (n := _integer(d)) is None:
        raise refuse(f"{d!r} is not a size", "integers, and x.shape[i] for the page axis")
    return n


def sizes(args: tuple[Any, ...]) -> list[Dim]:
    """Sizes given one by one or as one tuple."""
    if len(args) == 1 and isinstance(args[0], tuple | list):
        args = tuple(args[0])
    return [size(d) for d in args]


def counts(args: tuple[Any, ...]) -> list[Dim]:
    """The sizes of a new tensor: none below 0."""
    found = sizes(args)
    if any(isinstance(d, int) and d < 0 for d in found):
        raise refuse(f"a size below 0 among {list(found)}", "sizes from 0, and x.shape[i] for the page axis")
    return found


def number(n: Any, what: str) -> int:
    """An integer known while tracing."""
    if isinstance(n, PageDim):
        raise fail(SYMBOLIC_SIZE, what=what)
    if isinstance(n, vTensor) or (known := _integer(n)) is None:
        raise refuse(f"{what} is {n!r}", "an integer known while tracing")
    return known
