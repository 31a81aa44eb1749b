"""The memory of one row in ``select`` on a GPU: what is laid out where before the first instruction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.ptx import WARP
from vortex.codegen.cuda.select.cluster_choice import Exchange
from vortex.codegen.cuda.select.kth_key import bins_of
from vortex.codegen.cuda.storage import Arena, Held
from vortex.codegen.sweep import key_slot, parts_of, selection_of
from vortex.codegen.tir import Expr, i32
from vortex.codegen.values import type_of
from vortex.ir.core import Function, Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.staging import Staging, axis_of, is_for_row, stage
from vortex.ir.types import Sym
from vortex.schedules.contractions import LaneGroup
from vortex.schedules.cuda_select import SelectKnobs, lane_groups_of
from vortex.schedules.kept_words import KeptWords, tiles_of
from vortex.schedules.knobs import read_knobs
from vortex.schedules.matrices import Matrix, matrices_of
from vortex.schedules.page_tiles import PAGE_TILE, stays_in_lane
from vortex.schedules.shared_sweeps import chosen_together


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
    words: KeptWords

    @classmethod
    def of(cls, program: Module, f: Function) -> Layout:
        matrices = tuple(matrices_of(program, f))
        contracted = {m.op for m in matrices}
        groups = {o: g for o, g in lane_groups_of(program, f).items() if o not in contracted}
        return cls(program, f, stage(f), matrices, groups, KeptWords.of(f))

    @property
    def selection(self) -> flow.Selection | None:
        """The choice of pages, in kernels that make it."""
        return selection_of(self.f)

    def swept(self, v: Value) -> Sym:
        """The pages that the sweep goes over in which a value is computed."""
        assert v.owner is not None
        return self.staging.axes[self.staging.loop[v.owner]]

    @property
    def page_words(self) -> int:
        """Words per page of the row's scratch, as plan-memory laid it out."""
        return int(self.f.attrs.get("page_words", 0))

    @property
    def prefiltered(self) -> list[flow.Ranking]:
        """Rankings of which each page tile leaves its greatest key where the row is long: those chosen by their keys
        alone, in the order of the pages.
        """
        parts = parts_of(self.f)
        alone = [o for o in parts if len(parts) == 1 and not o.share and o.near is None]
        return [*alone, *(o for o in self.f.ops if isinstance(o, flow.Shortlist))]

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
    """``page_words`` and ``row_words`` of a ``select`` kernel on a GPU: what page tiles leave comes on top, in clusters
    that of shortlists as well, and what CTAs tell each other.
    """
    layout, knobs = Layout.of(program, f), read_knobs(SelectKnobs, f.attrs.get("schedule", {}))
    partial, told = layout.words.of_page_tile + len(layout.prefiltered), 0
    if knobs.cluster > 1:
        told = sum(layout.words.partials.values())
        if chosen_together(f) is not None:
            told += Exchange.size(bins_of(knobs.threads), knobs.threads // WARP * knobs.cluster)
    return layout.page_words + -(-partial // PAGE_TILE), int(f.attrs.get("row_words", 0)) + partial + told


@dataclass(frozen=True)
class Memory:
    """Where what is kept for every page (or page tile) of a row lies: in shared memory if the row fits there.

    In shared memory each value has ``chip_pages`` words, one for each page; in the workspace it has one for each
    column of the page table. Neighbours are pages in both. What is kept of the pages of shortlists is in shared memory
    always (:mod:`vortex.schedules.kept_words`), unless a cluster shares the row: then all is in the workspace, where
    each CTA finds what the others wrote.
    """

    layout: Layout
    args: Arguments
    arena: Arena
    chip_pages: int
    """Candidates of the longest row whose pages' values stay on chip."""
    chip_at: int
    partials_at: int
    shared: bool
    """Whether a cluster shares the row."""
    lists_at: dict[Op, int]
    """What is kept of a shortlist's pages, by op: where its words begin."""
    list_partials_at: dict[Op, int]
    list_keys_at: dict[Op, int]

    @classmethod
    def reserve(cls, layout: Layout, args: Arguments, arena: Arena, knobs: SelectKnobs) -> Memory:
        """Take shared memory for the longest row that is kept there."""
        chip_pages = layout.words.chip_pages(knobs.chip_words)
        chip_at = arena.take(len(layout.words.of_candidates) * chip_pages)
        partials_at = arena.take(layout.words.of_page_tile * (chip_pages // PAGE_TILE))
        of_lists = (layout.words.of_lists, layout.words.partials, layout.words.keys)
        shared = knobs.cluster > 1
        lists = ({} if shared else {o: arena.take(n) for o, n in words_of.items()} for words_of in of_lists)
        return cls(layout, args, arena, chip_pages, chip_at, partials_at, shared, *lists)


@dataclass(frozen=True)
class RowMemory:
    """The same of one row, which is ``on_chip`` as a whole or not at all."""

    memory: Memory
    row: Expr
    on_chip: Expr

    def of_page(self, o: Op) -> Held:
        """The words per page of what ``o`` keeps, one page after the other for each."""
        if (at := self.memory.lists_at.get(o)) is not None:
            return self._listed(at, type_of(o.value).pages)
        return self._of_candidate(o.notes["slot"])

    def keys(self, o: flow.Ranking) -> Held:
        """The keys by which pages are chosen: those of the candidates, or of the pages of a shortlist that are ranked
        (:meth:`by_position`).
        """
        if (at := self.memory.list_keys_at.get(o)) is not None:
            return self._listed(at, type_of(o.scored).pages)
        return self._of_candidate(key_slot(self.memory.layout.f, o))

    def by_position(self, o: flow.Ranking) -> bool:
        """Whether keys are those of the pages that are ranked, in the order of their list."""
        return o in self.memory.layout.words.keys

    def _of_candidate(self, slot: int) -> Held:
        m, columns, on_chip = self.memory, self.memory.args.columns, self.memory.layout.words.of_candidates
        if slot not in on_chip:
            return self._held(0, 0, columns * slot, columns)
        return self._held(m.chip_at + on_chip.index(slot) * m.chip_pages, m.chip_pages, columns * slot, columns)

    def of_page_tile(self, o: Op) -> Held:
        """The partial results of a fold or scan over pages, one for each page tile."""
        m, before = self.memory, 0
        if (at := m.list_partials_at.get(o)) is not None:
            axis = axis_of(o)
            assert axis is not None
            return self._chip(at, tiles_of(axis))
        for other, words in m.layout.words.crossing.items():
            if other is o:
                break
            before += words
        if m.shared and o in m.layout.words.partials:
            return self._of_list_tiles(o)
        pitch = m.chip_pages // PAGE_TILE
        return self._of_page_tiles(m.partials_at + before * pitch, pitch, before)

    def _of_list_tiles(self, o: Op) -> Held:
        """Words of the page tiles of a shortlist, in the workspace behind those of the candidates' page tiles."""
        m, axis = self.memory, axis_of(o)
        assert axis is not None
        behind, partials = m.layout.words.of_page_tile + len(m.layout.prefiltered), m.layout.words.partials
        before = sum(words for other, words in partials.items() if [*partials].index(other) < [*partials].index(o))
        base = self._of_page_tiles(0, 0, behind).base + before
        return self._held(0, 0, base, i32(tiles_of(axis)))

    def _of_page_tiles(self, at: int, pitch: int, before: int) -> Held:
        """Words of each page tile, behind ``before`` others of each in the workspace."""
        m, columns = self.memory, self.memory.args.columns
        page_tiles = (columns + (PAGE_TILE - 1)) // PAGE_TILE
        base = columns * m.layout.page_words + int(m.layout.f.attrs.get("row_words", 0))
        return self._held(at, pitch, base + page_tiles * before, page_tiles)

    def _listed(self, at: int, axis: Sym | None) -> Held:
        """Words of the pages of a shortlist."""
        assert axis is not None
        return self._chip(at, axis.limit)

    def _chip(self, at: int, pitch: int) -> Held:
        """Words that are in shared memory whatever the row is."""
        workspace = self.memory.args.buffers["workspace"]
        return Held(self.memory.arena, at, pitch, workspace, self.row, i32(0), i32(0), True)

    def greatest(self) -> Iterator[tuple[flow.Ranking, Held]]:
        """The words for the greatest key of each page tile, all in the workspace, of each ranking that keeps them: what
        may be among the best has room on chip, or all CTAs of a row choose.
        """
        m = self.memory
        if not m.chip_pages and not (m.shared and chosen_together(m.layout.f) is not None):
            return
        for i, o in enumerate(o for o in m.layout.prefiltered if o not in m.layout.words.keys):
            yield o, self._of_page_tiles(0, 0, m.layout.words.of_page_tile + i)

    def exchange(self) -> Held:
        """The words that CTAs tell each other when they choose together, behind all others."""
        words = self.memory.layout.words
        behind = words.of_page_tile + len(self.memory.layout.prefiltered)
        base = self._of_page_tiles(0, 0, behind).base + sum(words.partials.values())
        return self._held(0, 0, base, i32(0))

    def _held(self, at: int, pitch: int, base: Expr, room: Expr) -> Held:
        workspace = self.memory.args.buffers["workspace"]
        return Held(self.memory.arena, at, pitch, workspace, self.row, base, room, self.on_chip)
