"""Which contractions of a page a lane group of lanes does, and how: decided before any code is emitted.

A lane group reads a summary in 16-byte vectors, neighbours next to each other, when a fold runs along the
contiguous axis of what it loads. Whether it does is found by evaluating one element of the fold with
named unknowns for its axes, and looking at the index with which each load is then asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from vortex.codegen.cuda.cta_compute import PLAIN
from vortex.codegen.cuda.ptx import WARP
from vortex.codegen.scalar import number_type
from vortex.codegen.tiles import Keep, Tiles
from vortex.codegen.tir import F32, I32, Expr, T, cast, f32, flat, i32, tirx
from vortex.codegen.values import Index, Values, type_of
from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.staging import over_pages
from vortex.ir.types import DType, bf16, f16, fp8_e4m3
from vortex.ir.types import f32 as f32_type

VECTOR = 16
"""Bytes of one load."""
LOADABLE = {bf16: 2, f16: 2, fp8_e4m3: 1, f32_type: 4}


@dataclass(frozen=True)
class LaneGroupLoad:
    """A load whose last axis is the one folded."""

    load: page.Load
    rows: tuple[int, ...]
    """Its index along the other axes of the tile: the key of an axis of the fold, or ~i for the constant i."""

    @property
    def dtype(self) -> DType:
        return type_of(self.load.value).dtype

    def sees(self, index: Index, at: dict[int, Expr]) -> bool:
        """Whether a load at ``index`` (page axis first) asks for the row that ``rows`` means at ``at``."""
        return all(
            i is at.get(r) if r >= 0 else isinstance(i, tirx.IntImm) and int(i) == ~r
            for i, r in zip(index[1:-1], self.rows, strict=True)
        )

    def row(self, at: dict[int, Expr]) -> Expr:
        """Which row of the tile that is."""
        return flat([at[r] if r >= 0 else i32(~r) for r in self.rows], type_of(self.load.value).tile[:-1])


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


def unpack(word: Expr, k: Expr | int, dtype: DType) -> Expr:
    """Element ``k`` of a register of packed elements, widened to fp32 (fp8: its byte)."""
    if dtype == f32_type:
        return T.reinterpret(F32, word)
    if dtype == fp8_e4m3:
        return cast("uint8", T.bitwise_and(T.shift_right(word, T.uint32(8 * int(k))), T.uint32(0xFF)))
    if dtype == bf16:
        high = T.bitwise_and(word, T.uint32(0xFFFF0000)) if k else T.shift_left(word, T.uint32(16))
        return T.reinterpret(F32, high)
    half = T.shift_right(word, T.uint32(16)) if k else T.bitwise_and(word, T.uint32(0xFFFF))
    return T.reinterpret("float16", T.Cast("uint16", half))


class _Unknown(Values):
    """Values that are not looked into: all that has a storage is some number, and loads are written down."""

    def __init__(self) -> None:
        self.asked: list[tuple[page.Load, Index]] = []
        leaves: dict[str, Expr] = {"layer": i32(0), "page_count": i32(1), "first_page": i32(0)}
        super().__init__(self._note, leaves=leaves)

    def _note(self, o: page.Load, index: Index) -> Expr:
        self.asked.append((o, index))
        dtype = type_of(o.value).dtype
        return tirx.Var("x", "uint8") if dtype == fp8_e4m3 else _number(dtype)

    def read(self, v: Value, index: Index) -> Expr:
        if v.owner is not None and v.owner.notes.get("in") in ("tile", "scratch"):
            return _number(type_of(v).dtype)
        return self.expression(v, index)

    def _leaf(self, o: Op, index: Index) -> Expr:
        return _number(type_of(o.value).dtype) if isinstance(o, flow.Resource) else super()._leaf(o, index)


def _number(dtype: DType) -> Expr:
    kind = number_type(dtype)
    if kind == F32:
        return f32(0.5)
    return i32(1) if kind == I32 else tirx.Var("b", "bool")


@dataclass
class _Probe(Tiles):
    """Runs a fold with unknowns instead of emitting it."""

    paged: Callable[[page.Load], bool] = field(kw_only=True)
    lane_group: LaneGroup | None = None

    def fold(
        self,
        o: Op,
        out: list[tuple[int, int]],
        red: list[tuple[int, int]],
        contiguous: int | None,
        element: Callable[[dict[int, Expr]], Expr],
        keep: Keep,
    ) -> None:
        if any(d == 0 for _, d in [*out, *red]):
            return
        at = {k: tirx.Var(f"i{k}", I32) for k, _ in [*out, *red]}
        assert isinstance(self.values, _Unknown)
        element(at)
        best = [t for k, d in red if (t := self._along(k, d, at)) is not None]
        self.lane_group = max(best, key=lambda t: t.lanes * t.vector * t.chunks, default=None)

    def _along(self, key: int, extent: int, at: dict[int, Expr]) -> LaneGroup | None:
        assert isinstance(self.values, _Unknown)
        known = {id(x): k for k, x in at.items()}
        loads: dict[page.Load, LaneGroupLoad] = {}
        for load, index in self.values.asked:
            inner = index[1:]
            if (
                not self.paged(load)
                or not inner
                or inner[-1] is not at[key]
                or type_of(load.value).dtype not in LOADABLE
            ):
                continue
            if all(id(i) in known or isinstance(i, tirx.IntImm) for i in inner[:-1]):
                rows = tuple(known[id(i)] if id(i) in known else ~int(i) for i in inner[:-1])
                loads.setdefault(load, LaneGroupLoad(load, rows))
        if not loads:
            return None
        sizes = [LOADABLE[x.dtype] for x in loads.values()]
        vector = math.gcd(extent, min(VECTOR // s for s in sizes))
        if vector * min(sizes) < 4:
            return None
        lanes = math.gcd(extent // vector, WARP)
        return LaneGroup(key, lanes, vector, extent // vector // lanes, tuple(loads.values()))


def lane_group_of(o: Op, paged: Callable[[page.Load], bool]) -> LaneGroup | None:
    """The lane group for an op over pages, or None where each lane had better take a page of its own."""
    if not isinstance(o, flow.Reduce | flow.Dot) or o.crosses_pages() or not over_pages(o.value):
        return None
    probe = _Probe(_Unknown(), PLAIN, i32(0), paged=paged)
    probe.compute(o, lambda i, x: None)
    return probe.lane_group
