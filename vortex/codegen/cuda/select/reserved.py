"""The shared memory of the sweeps of ``select``, handed out before it is declared, and how its inputs are read."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.cuda.pool_rows import element_at
from vortex.codegen.cuda.ptx import quotient, remainder
from vortex.codegen.cuda.select.layout import Layout
from vortex.codegen.cuda.select.tensor_core.contractions import Contractions
from vortex.codegen.cuda.storage import Arena, ListStorage, RowStorage
from vortex.codegen.cuda.vector_load import unpack
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.sweep import Here, RowReader, page_ops
from vortex.codegen.tiles import require_emittable
from vortex.codegen.tir import Buffer, Expr, T, i32
from vortex.codegen.values import Index, type_of
from vortex.ir.core import Decl, Value
from vortex.ir.dialects import flow, page
from vortex.schedules.cuda_select import SelectKnobs
from vortex.schedules.page_tiles import PageTiles, tile_of
from vortex.schedules.select_memory import is_staged, shortlists


@dataclass(frozen=True)
class Reserved:
    """The shared memory of the sweeps, handed out before it is declared."""

    rows: dict[Value, RowStorage]
    """Of values of the row."""
    page_tiles: PageTiles
    """Where values of a page tile begin in the words of a warp."""
    page_tiles_at: int
    inputs: dict[str, int]
    """Inputs of the row that go through shared memory, by buffer: they are asked for first and used last."""
    contractions: dict[int, Contractions]
    """What tensor cores do in each sweep."""
    lists: dict[flow.Shortlist, ListStorage]
    """Of each shortlist, a word for each of its pages."""

    @classmethod
    def take(cls, layout: Layout, arena: Arena, cta: Cta, knobs: SelectKnobs) -> Reserved:
        """Take shared memory for all sweeps of a kernel."""
        for o in layout.f.ops:
            require_emittable(o)
        rows = {o.value: RowStorage(arena, arena.take(max(1, type_of(o.value).numel))) for o in layout.per_row()}
        page_tiles = PageTiles.of(layout.f, layout.staging, layout.lane_groups, layout.matrices)
        page_tiles_at = arena.take(page_tiles.words(cta.warps))
        inputs: dict[str, int] = {}
        for o in layout.f.ops:
            if isinstance(o, page.Load) and is_staged(layout.program, o):
                # taken again for each load: only the first is used
                inputs.setdefault(o.buffer, arena.take(type_of(o.value).numel // 2))
        contractions = {}
        for level in range(layout.staging.loops):
            ops = page_ops(layout.f, layout.staging, level)
            if mine := [m for m in layout.matrices if m.op in ops]:
                pages = tile_of(layout.staging.axes[level])
                contractions[level] = Contractions.reserve(mine, pages, arena, knobs.ahead)
        lists = {o: ListStorage(arena, arena.take(o.listed.limit)) for o in shortlists(layout.f)}
        return cls(rows, page_tiles, page_tiles_at, inputs, contractions, lists)


@dataclass(frozen=True)
class GpuReader(RowReader):
    """Reads what the kernel loads for a row; some inputs are in shared memory."""

    arena: Arena
    inputs: dict[str, int]
    pools: dict[str, Buffer]
    """The memory of each pool as one row of elements: TVM's buffers have no strides on a GPU."""

    def load(self, o: page.Load, index: Index, here: Here | None = None) -> Expr:
        if o.buffer not in self.inputs:
            return super().load(o, index, here)
        t = type_of(o.value)
        word = self.arena.u32[quotient(index[0] * t.tile[1] + index[1], i32(2)) + self.inputs[o.buffer]]
        odd = remainder(index[1], i32(2)) > 0
        return T.Select(odd, unpack(word, 1, t.dtype), unpack(word, 0, t.dtype))

    def row_of(self, pool: Decl, where: tuple[Expr, ...]) -> Expr:
        return self.pools[pool.name][element_at(where, self.args.buffers[pool.name].strides)]
