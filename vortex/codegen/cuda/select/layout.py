"""The memory of one row in ``select`` on a GPU: what is laid out where before the first instruction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.storage import Arena, Held
from vortex.codegen.tir import Expr
from vortex.codegen.values import type_of
from vortex.ir.core import Function, Module, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.staging import Staging, over_pages, stage
from vortex.ir.types import TensorType
from vortex.schedules.contractions import LaneGroup, Matrix, lane_group_of, matrix_of
from vortex.schedules.cuda_select import PAGE_TILE, SelectKnobs

IN_REGISTERS = 8
"""Numbers of a page that its lane may keep in registers."""
WIDE = 32
"""Results of a fold over pages from which on lanes take results rather than pages."""


@dataclass
class Layout:
    """What the ops of a ``select`` kernel need, known from the IR alone."""

    program: Module
    f: Function
    staging: Staging = field(init=False)
    matrices: dict[Op, Matrix] = field(init=False)
    """What tensor cores contract."""
    lane_groups: dict[Op, LaneGroup] = field(init=False)
    """What lane groups of lanes fold."""

    def __post_init__(self) -> None:
        self.staging = stage(self.f)
        self.matrices = {o: m for o in self.f.ops if (m := matrix_of(o, self.paged)) is not None}
        rest = [o for o in self.f.ops if o not in self.matrices]
        self.lane_groups = {o: lane_group for o in rest if (lane_group := lane_group_of(o, self.paged)) is not None}

    def paged(self, o: page.Load) -> bool:
        return bool(self.program.decls[o.buffer].attrs["layout"] == "paged")

    @property
    def selection(self) -> flow.Selection | None:
        return next((o for o in self.f.ops if isinstance(o, flow.Selection)), None)

    @property
    def page_words(self) -> int:
        """Words per page of the row's scratch, as plan-memory laid it out."""
        return int(self.f.attrs.get("page_words", 0))

    def crossing(self) -> Iterator[Op]:
        """Folds and scans over pages, each of which leaves a partial result per page tile."""
        for o in self.f.ops:
            if o.result is not None and o.carries():
                yield o

    @property
    def partial_words(self) -> int:
        """Words per page tile of those partial results."""
        return sum(max(1, type_of(o.value).numel) for o in self.crossing())

    def per_row(self) -> list[Op]:
        """Ops with one result for the row that is kept in shared memory."""
        return [
            o for o in self.f.ops
            if o.result is not None and isinstance(o.result.type, TensorType) and not over_pages(o.result)
            and (o.notes.get("in") == "tile" or o.crosses_pages())
        ]  # fmt: skip

    def tiles(self) -> list[Op]:
        """Ops whose result is kept for the pages in hand."""
        return [
            o for o in self.f.ops
            if o.result is not None and isinstance(o.result.type, TensorType) and over_pages(o.result)
            and o.notes.get("in") == "tile"
        ]  # fmt: skip

    def in_lane(self, o: Op) -> bool:
        """Whether a tile's value can stay with the lane that computed it: no other lane ever asks."""
        if o in self.lane_groups or o in self.matrices or type_of(o.value).numel > IN_REGISTERS:
            return False
        return all(
            u not in self.lane_groups
            and not (u.crosses_pages() and wide(u))
            and self.staging.loop[u] == self.staging.loop[o]
            for u in _users(self.f, o.value)
        )

    def kept(self) -> list[Op]:
        """Ops whose results later passes read."""
        return [o for o in self.f.ops if o.result is not None and o.notes.get("in") == "scratch"]


def wide(o: Op) -> bool:
    """Whether a fold over pages has so many results that lanes take results."""
    return not isinstance(o, flow.Scan) and o.result is not None and type_of(o.value).numel >= WIDE


def _users(f: Function, v: Value) -> list[Op]:
    """The ops in which the value is looked at, through what is computed where it is used."""
    found: list[Op] = []
    for o in f.ops:
        if v not in o.operands:
            continue
        inline = o.result is not None and (o.role == "view" or o.notes.get("in") == "inline")
        found += _users(f, o.value) if inline and o.result is not None else [o]
    return found


def workspace_words(program: Module, f: Function) -> tuple[int, int]:
    """``page_words`` and ``row_words`` of a ``select`` kernel on a GPU: partial results per page tile come on top."""
    layout = Layout(program, f)
    partial = layout.partial_words
    return layout.page_words + -(-partial // PAGE_TILE), int(f.attrs.get("row_words", 0)) + partial


@dataclass
class Memory:
    """Storages of one row's values and keys, in shared memory or the workspace."""

    layout: Layout
    args: Arguments
    arena: Arena
    knobs: SelectKnobs

    def __post_init__(self) -> None:
        words = self.layout.page_words + -(-self.layout.partial_words // PAGE_TILE)
        self.chip_pages = self.knobs.chip_words // max(1, words) // PAGE_TILE * PAGE_TILE
        """Candidates of the longest row whose pages' values stay on chip."""
        self.chip_at = self.arena.take(self.layout.page_words * self.chip_pages)
        self.partials_at = self.arena.take(self.layout.partial_words * (self.chip_pages // PAGE_TILE))

    def _held(self, at: int, pitch: int, base: Expr, room: Expr) -> Held:
        return Held(self.arena, at, pitch, self.args.buffers["workspace"], self.row, base, room, self.on_chip)

    def enter(self, row: Expr, on_chip: Expr) -> None:
        self.row, self.on_chip = row, on_chip

    def of_page(self, slot: int) -> Held:
        """Words per page from ``slot`` on, one page after the other for each."""
        columns = self.args.size("Pmax")
        return self._held(self.chip_at + slot * self.chip_pages, self.chip_pages, columns * slot, columns)

    def of_page_tile(self, o: Op) -> Held:
        """The partial results of a fold or scan over pages."""
        before = 0
        for other in self.layout.crossing():
            if other is o:
                break
            before += max(1, type_of(other.value).numel)
        page_tiles = (self.args.size("Pmax") + (PAGE_TILE - 1)) // PAGE_TILE
        base = self.args.size("Pmax") * self.layout.page_words + int(self.layout.f.attrs.get("row_words", 0))
        pitch = self.chip_pages // PAGE_TILE
        return self._held(self.partials_at + before * pitch, pitch, base + page_tiles * before, page_tiles)
