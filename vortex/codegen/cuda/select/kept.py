"""What is kept of pages from one sweep to later ones, while a warp is at these pages: in the registers of their lanes.

The sweep that computes such a number reads it where it was computed, and only writes it where it is kept. A later sweep
loads what it needs of several page tiles together, before it looks at any of it, and of the first ones before the CTA
finishes what the sweep before has completed:

    page tile    turn       turn + 1   turn + 2   turn + 3
    lane 0       loads      loads      loads      loads        then computes, one page tile after the other

Where what is kept lies in the workspace, a load takes hundreds of cycles, and the compilers cannot move it in front of
a store of the page tile before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vortex.codegen.cuda.select.layout import Layout, RowMemory
from vortex.codegen.cuda.storage import Held, LaneStorage, StoredValues
from vortex.codegen.tir import Expr, local, when
from vortex.codegen.values import type_of
from vortex.ir.core import Op
from vortex.schedules.page_tiles import reads_own_page

TOGETHER, REGISTERS = 8, 32
"""Page tiles of which a later sweep loads together, if a lane has no more words of them than that."""


@dataclass(frozen=True)
class Loaded:
    """The registers of a later sweep for what earlier ones kept, by page tile of those that are loaded together."""

    ops: tuple[Op, ...]
    tiles: tuple[dict[Op, LaneStorage], ...]


@dataclass(frozen=True)
class KeptOfPages:
    """Puts what is kept into registers, and back to where it is kept."""

    layout: Layout
    memory: RowMemory
    values: StoredValues

    def held(self, o: Op) -> Held:
        """Where the result of ``o`` is kept."""
        return self.memory.of_page(o)

    def made_by_lanes(self, o: Op) -> bool:
        """Whether ``o`` is kept, and in the sweep that computes it each lane reads it of its own page alone."""
        if o.result is None or o.notes.get("in") != "scratch" or o in self.layout.together or o.carries():
            return False
        return self._own_page(o, self.layout.staging.loop[o])

    def loaded(self, ops: Sequence[Op], level: int) -> list[Op]:
        """What sweep ``level`` reads that earlier ones kept, where each lane reads it of its own page alone."""
        staging = self.layout.staging
        earlier = [o for o in self.layout.kept() if staging.loop[o] < level <= staging.kept[o.value]]
        return [o for o in earlier if self._own_page(o, level)]

    def _own_page(self, o: Op, level: int) -> bool:
        return reads_own_page(self.layout.f, self.layout.staging, self.layout.together, o, level)

    def open(self, o: Op) -> None:
        """Declare registers, from here on the place of ``o``'s result."""
        self.values.storages[o.value] = LaneStorage(local(o.value.name, max(1, type_of(o.value).numel)))

    def close(self, o: Op) -> None:
        """From here on it is where it is kept."""
        self.values.storages[o.value] = self.held(o)

    def keep(self, o: Op, position: Expr, is_page: Expr) -> None:
        """Write what is in the registers where it is kept."""
        registers = self.values.storages[o.value]
        assert isinstance(registers, LaneStorage)
        with when(is_page):
            self.held(o).write([registers.buffer[e] for e in range(type_of(o.value).numel)], position)

    def registers(self, ops: Sequence[Op]) -> Loaded:
        """Declare registers for all these results."""
        many = max(1, min(TOGETHER, REGISTERS // sum(max(1, type_of(o.value).numel) for o in ops)))

        def made(n: int) -> dict[Op, LaneStorage]:
            return {o: LaneStorage(local(f"{o.value.name}_{n}", max(1, type_of(o.value).numel))) for o in ops}

        return Loaded(tuple(ops), tuple(made(n) for n in range(many)))

    def load(self, loaded: Loaded, positions: Sequence[Expr]) -> None:
        """Load what is kept of the pages at these positions; all loads are on their way together."""
        Held.read_all(
            [
                (self.held(o), registers.buffer, position, e, e)
                for here, position in zip(loaded.tiles, positions, strict=True)
                for o, registers in here.items()
                for e in range(type_of(o.value).numel)
            ]
        )
