"""Which folds and contractions of ``select`` lane groups do, told from the IR alone.

A *lane group* reads a summary in 16-byte vectors, neighbours next to each other, when a fold runs along the contiguous
axis of what it loads. Whether it does is found by walking from one element of the fold to the loads behind it, and
looking at the index with which each load is asked. What of them goes to tensor cores is told in
:mod:`vortex.schedules.matrices`.

    %d = flow.dot(%q, %c) {spec = "gd,sd->sg"}      %c : bf16[S, 128] is loaded, %q belongs to the row
      -> LaneGroup(axis = "d", lanes = 16, vector = 8, chunks = 1)

Both the default schedule and the emitters ask here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.staging import over_pages
from vortex.ir.types import Dim, DType, Sym, TensorType, bf16, f16, f32, fp8_e4m3, i32, int4, int8
from vortex.targets.gpu import WARP

VECTOR = 16
"""Bytes of one load."""
LOADABLE = frozenset((bf16, f16, fp8_e4m3, f32, int8, int4, i32))
"""The types that lane groups read; i32 are words of bits."""

Paged = Callable[[page.Load], DType | None]
"""The type in which the numbers lie that a load reads through the page table; None for what is not taken from there."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The place along an axis of a fold."""

    key: int


_Place = Axis | int | None
"""Where an element is along one axis: at an axis of the fold, at a constant, or somewhere that is computed."""


def type_of(v: Value) -> TensorType:
    """The type of a value that is a tensor."""
    assert isinstance(v.type, TensorType)
    return v.type


@dataclass(frozen=True)
class LaneGroupLoad:
    """A load whose last axis is the one folded."""

    load: page.Load
    dtype: DType
    """Of the numbers as they lie in memory."""
    rows: tuple[int, ...]
    """Its index along the other axes of the tile: the key of an axis of the fold, or ~i for the constant i."""


@dataclass(frozen=True)
class LaneGroup:
    """The lanes that fold one page's share of an op."""

    axis: int
    """Key of the axis along which the vectors lie."""
    lanes: int
    vector: int
    """Elements in a vector."""
    chunks: int
    """Vectors of each lane."""
    loads: tuple[LaneGroupLoad, ...]
    """What is read in vectors."""

    @property
    def tiled(self) -> set[int]:
        """Keys of the other axes by which those loads are indexed."""
        return {k for x in self.loads for k in x.rows if k >= 0}

    @property
    def pages(self) -> int:
        """Pages that a warp has in hand at once."""
        return WARP // self.lanes


def lane_group_of(o: Op, paged: Paged) -> LaneGroup | None:
    """The lane group for an op over pages, or None where each lane had better take a page of its own."""
    if not isinstance(o, flow.Reduce | flow.Dot) or o.crosses_pages() or not over_pages(o.value):
        return None
    out, red, reads = _reduced(o) if isinstance(o, flow.Reduce) else _contracted(o)
    if 0 in out.values() or 0 in red.values():
        return None
    asked = [found for v, index in reads for found in loads_of(v, index)]
    best = [g for key, extent in red.items() if (g := _along(key, extent, asked, paged)) is not None]
    return max(best, key=lambda g: g.lanes * g.vector * g.chunks, default=None)


_Fold = tuple[dict[int, int], dict[int, int], list[tuple[Value, list[_Place]]]]
"""Extents of the axes that stay and of those that are folded, by key; what one element reads, in order."""


def _reduced(o: flow.Reduce) -> _Fold:
    """Axes go by their number."""
    shape = type_of(o.x).shape
    out = {a: int(d) for a, d in enumerate(shape) if a not in o.axes and isinstance(d, int)}
    red = {a: int(d) for a, d in enumerate(shape) if a in o.axes and isinstance(d, int)}
    return out, red, [(o.x, [0 if isinstance(d, Sym) else Axis(a) for a, d in enumerate(shape)])]


def _contracted(o: flow.Dot) -> _Fold:
    """Axes go by their letter's code."""
    la, lb, lo = o.letters()
    dims = dict(zip(la + lb, type_of(o.a).shape + type_of(o.b).shape, strict=True))
    out = {ord(c): int(d) for c in lo if isinstance(d := dims[c], int)}
    red = {ord(c): int(d) for c in dict.fromkeys(la + lb) if c not in lo and isinstance(d := dims[c], int)}

    def places(letters: str) -> list[_Place]:
        return [0 if isinstance(dims[c], Sym) else Axis(ord(c)) for c in letters]

    return out, red, [(o.a, places(la)), (o.b, places(lb))]


def _along(key: int, extent: int, asked: Sequence[tuple[page.Load, list[_Place]]], paged: Paged) -> LaneGroup | None:
    """The lane group whose vectors lie along one axis; the index of a load has the page axis first."""
    loads: dict[page.Load, LaneGroupLoad] = {}
    for load, index in asked:
        inner, dtype = index[1:], paged(load)
        if dtype not in LOADABLE or not inner or inner[-1] != Axis(key):
            continue
        rows = [i.key if isinstance(i, Axis) else ~i for i in inner[:-1] if i is not None]
        if len(rows) == len(inner) - 1:
            loads.setdefault(load, LaneGroupLoad(load, dtype, tuple(rows)))
    if not loads:
        return None
    sizes = [x.dtype.bits for x in loads.values()]
    vector = math.gcd(extent, min(8 * VECTOR // s for s in sizes))
    if vector * min(sizes) < 32:
        return None
    lanes = math.gcd(extent // vector, WARP)
    return LaneGroup(key, lanes, vector, extent // vector // lanes, tuple(loads.values()))


def loads_of(v: Value, index: list[_Place]) -> Iterator[tuple[page.Load, list[_Place]]]:
    """The loads behind one element of ``v``, in the order in which they are asked, through all that is recomputed."""
    o = v.owner
    if o is None or o.notes.get("in") in ("tile", "scratch"):
        return
    if isinstance(o, page.Load):
        yield o, index
    elif isinstance(o, flow.View):
        yield from loads_of(o.x, _seen_through(o, index))
    elif o.role != "leaf":
        for x in o.operands:
            if isinstance(x.type, TensorType):
                yield from loads_of(x, _fitted(index, type_of(v).shape, x.type.shape))


def _seen_through(o: Op, index: list[_Place]) -> list[_Place]:
    """Which element of its operand a view shows at ``index``."""
    if isinstance(o, flow.Transpose):
        back: list[_Place] = [0] * len(index)
        for i, p in zip(index, o.perm, strict=True):
            back[p] = i
        return back
    if isinstance(o, flow.Broadcast):
        return _fitted(index, o.shape, type_of(o.x).shape)
    if isinstance(o, flow.Slice):
        i = index[o.axis]
        moved = i * o.step + o.start if isinstance(i, int) else None
        return [*index[: o.axis], moved, *index[o.axis + 1 :]]
    if isinstance(o, flow.Pick):
        return index  # of another page
    assert isinstance(o, flow.Reshape)
    source = type_of(o.x)
    axis, out_axis = source.page_axis, type_of(o.value).page_axis
    if axis is None or out_axis is None:
        return _reshaped(index, o.shape, source.shape)
    before = _reshaped(index[:out_axis], o.shape[:out_axis], source.shape[:axis])
    after = _reshaped(index[out_axis + 1 :], o.shape[out_axis + 1 :], source.shape[axis + 1 :])
    return [*before, index[out_axis], *after]


def _fitted(index: list[_Place], shape: tuple[Dim, ...], to: tuple[Dim, ...]) -> list[_Place]:
    """The place in a broadcast operand of shape ``to``."""
    tail = index[len(shape) - len(to) :]
    return [0 if d == 1 else i for i, d in zip(tail, to, strict=True)]


def _reshaped(index: list[_Place], shape: tuple[Dim, ...], to: tuple[Dim, ...]) -> list[_Place]:
    dims, wanted = [int(d) for d in shape if isinstance(d, int)], [int(d) for d in to if isinstance(d, int)]
    real = [(i, d) for i, d in zip(index, dims, strict=True) if d != 1]
    if [d for _, d in real] == [d for d in wanted if d != 1]:
        # only axes of size 1 come and go: no division needed
        rest = iter(real)
        return [0 if d == 1 else next(rest)[0] for d in wanted]
    at = 0
    for i, d in zip(index, dims, strict=True):
        if not isinstance(i, int):
            return [0 if d == 1 else None for d in wanted]
        at = at * d + i
    found: list[_Place] = []
    for d in reversed(wanted):
        found.append(at % d)
        at //= d
    return found[::-1]
