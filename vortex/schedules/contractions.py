"""Which contractions of ``select`` lane groups do and which tensor cores do, told from the IR alone.

A *lane group* reads a summary in 16-byte vectors, neighbours next to each other, when a fold runs along the contiguous
axis of what it loads. Whether it does is found by walking from one element of the fold to the loads behind it, and
looking at the index with which each load is asked. A contraction of one such load with numbers of the row goes to
tensor cores where its sizes and types allow it.

    %d = flow.dot(%q, %c) {spec = "gd,sd->sg"}      %c : bf16[S, 128] is loaded, %q belongs to the row
      -> LaneGroup(axis = "d", lanes = 16, vector = 8, chunks = 1), Matrix(extent = 128, columns = (("g", 4),))

Both the default schedule and the emitters ask here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.staging import origin_of, over_pages
from vortex.ir.types import Dim, DType, Sym, TensorType, bf16, f16, f32, fp8_e4m3, i32, int4, int8
from vortex.targets.gpu import WARP

VECTOR = 16
"""Bytes of one load."""
LOADABLE = frozenset((bf16, f16, fp8_e4m3, f32, int8, int4, i32))
"""The types that lane groups read; i32 are words of bits."""

COLUMNS = 8
"""Of one tensor core tile."""
UNIT_WORDS = 32
"""Registers of summaries that are loaded together."""
PIECES = 3
"""bf16 numbers that add up to any fp32 number."""

Paged = Callable[[page.Load], bool]
"""Whether a load reads summaries through the page table."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """The place along an axis of a fold."""

    key: int


_Place = _Axis | int | None
"""Where an element is along one axis: at an axis of the fold, at a constant, or somewhere that is computed."""


def type_of(v: Value) -> TensorType:
    """The type of a value that is a tensor."""
    assert isinstance(v.type, TensorType)
    return v.type


@dataclass(frozen=True)
class LaneGroupLoad:
    """A load whose last axis is the one folded."""

    load: page.Load
    rows: tuple[int, ...]
    """Its index along the other axes of the tile: the key of an axis of the fold, or ~i for the constant i."""

    @property
    def dtype(self) -> DType:
        return type_of(self.load.value).dtype


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
    asked = [found for v, index in reads for found in _loads(v, index)]
    best = [g for key, extent in red.items() if (g := _along(key, extent, asked, paged)) is not None]
    return max(best, key=lambda g: g.lanes * g.vector * g.chunks, default=None)


_Fold = tuple[dict[int, int], dict[int, int], list[tuple[Value, list[_Place]]]]
"""Extents of the axes that stay and of those that are folded, by key; what one element reads, in order."""


def _reduced(o: flow.Reduce) -> _Fold:
    """Axes go by their number."""
    shape = type_of(o.x).shape
    out = {a: int(d) for a, d in enumerate(shape) if a not in o.axes and isinstance(d, int)}
    red = {a: int(d) for a, d in enumerate(shape) if a in o.axes and isinstance(d, int)}
    return out, red, [(o.x, [0 if isinstance(d, Sym) else _Axis(a) for a, d in enumerate(shape)])]


def _contracted(o: flow.Dot) -> _Fold:
    """Axes go by their letter's code."""
    la, lb, lo = o.letters()
    dims = dict(zip(la + lb, type_of(o.a).shape + type_of(o.b).shape, strict=True))
    out = {ord(c): int(d) for c in lo if isinstance(d := dims[c], int)}
    red = {ord(c): int(d) for c in dict.fromkeys(la + lb) if c not in lo and isinstance(d := dims[c], int)}

    def places(letters: str) -> list[_Place]:
        return [0 if isinstance(dims[c], Sym) else _Axis(ord(c)) for c in letters]

    return out, red, [(o.a, places(la)), (o.b, places(lb))]


def _along(key: int, extent: int, asked: Sequence[tuple[page.Load, list[_Place]]], paged: Paged) -> LaneGroup | None:
    """The lane group whose vectors lie along one axis; the index of a load has the page axis first."""
    loads: dict[page.Load, LaneGroupLoad] = {}
    for load, index in asked:
        inner = index[1:]
        if not paged(load) or not inner or inner[-1] != _Axis(key) or type_of(load.value).dtype not in LOADABLE:
            continue
        rows = [i.key if isinstance(i, _Axis) else ~i for i in inner[:-1] if i is not None]
        if len(rows) == len(inner) - 1:
            loads.setdefault(load, LaneGroupLoad(load, tuple(rows)))
    if not loads:
        return None
    sizes = [x.dtype.bits for x in loads.values()]
    vector = math.gcd(extent, min(8 * VECTOR // s for s in sizes))
    if vector * min(sizes) < 32:
        return None
    lanes = math.gcd(extent // vector, WARP)
    return LaneGroup(key, lanes, vector, extent // vector // lanes, tuple(loads.values()))


def _loads(v: Value, index: list[_Place]) -> Iterator[tuple[page.Load, list[_Place]]]:
    """The loads behind one element of ``v``, in the order in which they are asked, through all that is recomputed."""
    o = v.owner
    if o is None or o.notes.get("in") in ("tile", "scratch"):
        return
    if isinstance(o, page.Load):
        yield o, index
    elif isinstance(o, flow.View):
        yield from _loads(o.x, _seen_through(o, index))
    elif o.role != "leaf":
        for x in o.operands:
            if isinstance(x.type, TensorType):
                yield from _loads(x, _fitted(index, type_of(v).shape, x.type.shape))


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


@dataclass(frozen=True)
class Matrix:
    """How one ``flow.dot`` goes to tensor cores; axes are (key, extent), the key the axis' letter."""

    op: flow.Dot
    load: LaneGroupLoad
    extent: int
    """Of the axis that is summed."""
    row: Value
    letters: str
    """Of the row's operand."""
    columns: tuple[tuple[int, int], ...]
    tiles: tuple[tuple[int, int], ...]
    """Axes of the result that the summary has, beside its pages."""
    axis: int
    exact: bool
    """The row's operand is exact in the type of the summary."""

    @property
    def count(self) -> int:
        return math.prod(d for _, d in self.columns)

    @property
    def side_by_side(self) -> bool:
        """Whether the three pieces of each number take columns of their own."""
        return not self.exact and self.count * 4 <= COLUMNS

    @property
    def column_tiles(self) -> int:
        return 1 if self.side_by_side else -(-self.count // COLUMNS)

    @property
    def fragments_b(self) -> int:
        """Fragments B for the same columns."""
        return 1 if self.exact or self.side_by_side else PIECES

    @property
    def accumulators(self) -> int:
        """Accumulators for the same columns: what the first pieces give is kept apart."""
        return min(self.fragments_b, 2)

    @property
    def words(self) -> int:
        """32-bit words of one load."""
        return 4 if self.extent % 32 == 0 else 2

    @property
    def chunk(self) -> int:
        """Elements that the four lanes of a page load at once."""
        return 8 * self.words

    @property
    def chunks(self) -> int:
        return self.extent // self.chunk

    @property
    def unit_chunks(self) -> int:
        """Chunks that are loaded together."""
        most = max(1, UNIT_WORDS // (2 * self.words))
        return max(n for n in range(1, min(most, self.chunks) + 1) if self.chunks % n == 0)

    @property
    def row_tiles(self) -> tuple[tuple[int, int], ...]:
        """The axes of ``tiles`` that the row's operand has too."""
        return tuple((k, d) for k, d in self.tiles if chr(k) in self.letters)

    @property
    def fragment_words(self) -> int:
        return self.chunks * WARP * self.words

    def fragments(self) -> list[tuple[int, int, int]]:
        """Fragments B by (index along row_tiles, tile of columns, piece)."""
        tiles = math.prod(d for _, d in self.row_tiles)
        return [(t, n, s) for t in range(tiles) for n in range(self.column_tiles) for s in range(self.fragments_b)]

    def fragment_of(self, at: dict[int, int]) -> int:
        """The index along row_tiles of a place along ``tiles``."""
        found = 0
        for k, d in self.row_tiles:
            found = found * d + at[k]
        return found


def matrix_of(o: Op, paged: Paged) -> Matrix | None:
    """The plan for a dot of pages with the row, or None where tensor cores do not fit."""
    found = _matrix(o, paged)
    return found if isinstance(found, Matrix) else None


def why_no_matrix(o: Op, paged: Paged) -> str | None:
    """Why tensor cores do not do a contraction over pages, in words; None where they do, or where it is none."""
    if not isinstance(o, flow.Dot) or not over_pages(o.value):
        return None
    found = _matrix(o, paged)
    return found if isinstance(found, str) else None


def _matrix(o: Op, paged: Paged) -> Matrix | str:
    """The plan, or what is in its way."""
    if not isinstance(o, flow.Dot):
        return "it is no contraction"
    lane_group = lane_group_of(o, paged)
    if lane_group is None:
        return "no field is read along the axis that is summed, which must be its last one"
    if len(lane_group.loads) != 1:
        return f"it reads {len(lane_group.loads)} fields along the axis that is summed, and one is needed"
    (load,) = lane_group.loads
    la, lb, lo = o.letters()
    sides = ((o.a, la, o.b, lb), (o.b, lb, o.a, la))
    pages, mine, row, letters = next((s for s in sides if origin_of(s[0]).owner is load.load), (None, "", o.a, ""))
    dims = dict(zip(la + lb, type_of(o.a).shape + type_of(o.b).shape, strict=True))
    summed = [c for c in dict.fromkeys(la + lb) if c not in lo]
    if pages is None:
        return f"neither side is the field {load.load.buffer} as it is stored: something is computed with it first"
    if over_pages(row):
        return "both sides run over pages, and one must be the same for all pages of a row"
    if summed != [chr(lane_group.axis)]:
        return f"{len(summed)} axes are summed, and one is needed"
    if load.dtype not in (bf16, f16):
        return f"field {load.load.buffer} is stored as {load.dtype}, and bf16 or f16 is needed"
    if any(letters.count(c) > 1 or mine.count(c) > 1 for c in letters + mine):
        return "an axis occurs twice on one side"
    extent = dims[summed[0]]
    exact = _exact(row, load.dtype)
    if not isinstance(extent, int) or extent % 16:
        return f"the axis that is summed has {extent} elements, and a multiple of 16 is needed"
    if load.dtype == f16 and not exact:
        return "the other side is computed in fp32, which splits into bf16 numbers, and the field is f16"
    axes = [(ord(c), int(d)) for c in lo if isinstance(d := dims[c], int)]
    tiles = tuple(x for x in axes if x[0] in lane_group.tiled)
    columns = tuple(x for x in axes if x[0] not in lane_group.tiled)
    if 0 in [d for _, d in axes]:
        return "an axis of the result has no elements"
    if any(chr(k) in mine for k, _ in columns):
        return f"an axis of field {load.load.buffer} that stays is not read by index"
    return Matrix(o, load, extent, row, letters, columns, tiles, lane_group.axis, exact)


def _exact(v: Value, dtype: DType) -> bool:
    o = v.owner
    if isinstance(o, page.Load):
        return type_of(o.value).dtype == dtype
    if isinstance(o, flow.Constant):
        return o.number == 0
    if isinstance(o, flow.View):
        return _exact(o.x, dtype)
    return o is not None and not o.rounds and all(_exact(x, dtype) for x in o.operands)
