"""The memory of one row in ``select`` on a GPU: what is laid out where before the first instruction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.storage import Arena, Held
from vortex.codegen.sweep import is_for_row, selection_of
from vortex.codegen.tir import Expr
from vortex.codegen.values import type_of
from vortex.ir.core import Function, Module, Op
from vortex.ir.dialects import flow
from vortex.ir.staging import Staging, stage
from vortex.schedules.contractions import LaneGroup
from vortex.schedules.cuda_select import SelectKnobs, lane_groups_of, matrices_of
from vortex.schedules.matrices import Matrix
from vortex.schedules.page_tiles import PAGE_TILE, stays_in_lane


@dataclass(frozen=True)
class Layout:
    """What the ops of a ``select`` kernel need, known from the IR alone."""

    program: Module
    f: Function
    staging: Staging
    matrices: tuple[Matrix, ...]
    """What tensor cores contract."""
    lane_groups: dict[Op, LaneGroup]
    """What lane groups fold."""

    @classmethod
    def of(cls, program: Module, f: Function) -> Layout:
        matrices = tuple(matrices_of(program, f))
        contracted = {m.op for m in matrices}
        groups = {o: g for o, g in lane_groups_of(program, f).items() if o not in contracted}
        return cls(program, f, stage(f), matrices, groups)

    @property
    def selection(self) -> flow.Selection | None:
        """The choice of pages, in kernels that make it."""
        return selection_of(self.f)

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
        return [o for o in self.f.ops if is_for_row(o)]

    def in_lane(self, o: Op) -> bool:
        """Whether a tile's value can stay with the lane that computed it: no other lane ever asks."""
        return stays_in_lane(self.f, self.staging, self.together, o)

    @property
    def contracted(self) -> set[Op]:
        """The ops that are done where tensor cores contract."""
        return {o for m in self.matrices for o in m.ops}

    @property
    def together(self) -> set[Op]:
        """What several lanes do together."""
        return {*self.contracted, *self.lane_groups}

    def kept(self) -> list[Op]:
        """Ops whose results later passes read."""
        return [o for o in self.f.ops if o.result is not None and o.notes.get("in") == "scratch"]


def workspace_words(program: Module, f: Function) -> tuple[int, int]:
    """``page_words`` and ``row_words`` of a ``select`` kernel on a GPU: partial results per page tile come on top."""
    layout = Layout.of(program, f)
    partial = layout.partial_words
    return layout.page_words + -(-partial // PAGE_TILE), int(f.attrs.get("row_words", 0)) + partial


@dataclass(frozen=True)
class Memory:
    """Where what is kept for every page (or page tile) of a row lies: in shared memory if the row fits there.

    In shared memory each value has ``chip_pages`` words, one for each page; in the workspace it has one for each
    column of the page table. Neighbours are pages in both.
    """

    layout: Layout
    args: Arguments
    arena: Arena
    chip_pages: int
    """Candidates of the longest row whose pages' values stay on chip."""
    chip_at: int
    partials_at: int

    @classmethod
    def reserve(cls, layout: Layout, args: Arguments, arena: Arena, knobs: SelectKnobs) -> Memory:
        """Take shared memory for the longest row that is kept there."""
        words = layout.page_words + -(-layout.partial_words // PAGE_TILE)
        chip_pages = knobs.chip_words // max(1, words) // PAGE_TILE * PAGE_TILE
        chip_at = arena.take(layout.page_words * chip_pages)
        partials_at = arena.take(layout.partial_words * (chip_pages // PAGE_TILE))
        return cls(layout, args, arena, chip_pages, chip_at, partials_at)


@dataclass(frozen=True)
class RowMemory:
    """The same of one row, which is ``on_chip`` as a whole or not at all."""

    memory: Memory
    row: Expr
    on_chip: Expr

    def of_page(self, slot: int) -> Held:
        """Words per page from ``slot`` on, one page after the other for each."""
        m, columns = self.memory, self.memory.args.columns
        return self._held(m.chip_at + slot * m.chip_pages, m.chip_pages, columns * slot, columns)

    def of_page_tile(self, o: Op) -> Held:
        """The partial results of a fold or scan over pages, one for each page tile."""
        m, before = self.memory, 0
        for other in m.layout.crossing():
            if other is o:
                break
            before += max(1, type_of(other.value).numel)
        columns = m.args.columns
        page_tiles = (columns + (PAGE_TILE - 1)) // PAGE_TILE
        base = columns * m.layout.page_words + int(m.layout.f.attrs.get("row_words", 0))
        pitch = m.chip_pages // PAGE_TILE
        return self._held(m.partials_at + before * pitch, pitch, base + page_tiles * before, page_tiles)

    def _held(self, at: int, pitch: int, base: Expr, room: Expr) -> Held:
        workspace = self.memory.args.buffers["workspace"]
        return Held(self.memory.arena, at, pitch, workspace, self.row, base, room, self.on_chip)
