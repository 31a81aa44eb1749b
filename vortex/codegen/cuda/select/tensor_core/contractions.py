"""What a sweep contracts on tensor cores, cut into units of loads, and its shared memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vortex.codegen.cuda.storage import Arena
from vortex.codegen.narrow import STORAGE
from vortex.codegen.tiles import place_of
from vortex.ir.dialects import flow
from vortex.schedules.matrices import ROWS, Matrix


def core_of(m: Matrix) -> str:
    """The TVM type that tensor cores multiply for ``m``."""
    return STORAGE[m.core.name]


@dataclass(frozen=True)
class Unit:
    """What is loaded at once: ``unit_chunks`` chunks of 16 pages, at one place of the summary's tile, or of 16 rows."""

    matrix: Matrix
    at: tuple[int, ...]
    """The index along ``matrix.tiles``; of stacked rows none."""
    tile: int
    """Which 16 pages of the page tile, or which 16 rows, counted from those of the turn."""
    chunk: int
    """The first of its chunks."""

    @property
    def place(self) -> dict[int, int]:
        return place_of(self.matrix.tiles, self.at) if self.at else {}

    @property
    def ends(self) -> bool:
        """Whether its sums are complete once it is multiplied."""
        return self.chunk + self.matrix.unit_chunks == self.matrix.chunks


def _places(m: Matrix, half: int, pages: int) -> list[tuple[tuple[int, ...], int]]:
    """Every index along the axes that the result shares with the summary, beside its pages, for 16 pages; of stacked
    rows, every 16 rows of so many pages.
    """
    if m.stacked > 1:
        each = m.stacked * min(pages, ROWS) // ROWS
        return [((), half * each + i) for i in range(each)]
    found: list[tuple[int, ...]] = [()]
    for _, d in m.tiles:
        found = [(*t, i) for t in found for i in range(d)]
    return [(at, half) for at in found]


@dataclass(frozen=True)
class Contractions:
    """The contractions of one sweep over the pages of a row, as a pipeline of loads and products.

    Registers hold ``depth`` units on their way; the place of one that was multiplied is filled with a later one, of
    the next page tile at the end of a page tile. Where rows of one field are stacked, a page tile takes several turns
    of a loop, and a turn as few units as fill the registers.
    """

    units: tuple[Unit, ...]
    """Of a turn, in the order in which they are multiplied."""
    turns: int
    """Of a page tile."""
    depth: int
    fragments_at: dict[flow.Dot, int]
    """Where the fragments B of each contraction begin in shared memory."""
    powers_at: dict[flow.Dot, int]
    """Where the powers of two of the columns are that have some: the inverse ones, and then they themselves; then, for
    each index along ``row_tiles``, what the sums of the columns begin at where codes are shifted.
    """

    @classmethod
    def reserve(cls, matrices: Sequence[Matrix], pages: int, arena: Arena, ahead: int) -> Contractions:
        """Take shared memory for the fragments; a page tile has ``pages``, and ``ahead`` registers of a lane are for
        summaries on their way, beside their scales.
        """
        units = tuple(
            Unit(m, at, tile, c)
            for half in range(-(-pages // ROWS))
            for m in matrices
            for at, tile in _places(m, half, pages)
            for c in range(0, m.chunks, m.unit_chunks)
        )
        fit = max(1, ahead // max(2 * m.unit_chunks * m.words for m in matrices))
        depth, turns = max(d for d in range(1, min(fit, len(units)) + 1) if len(units) % d == 0), 1
        if len(matrices) == 1 and matrices[0].stacked > 1:
            # a turn ends with a product
            turns = len(units) // math.lcm(depth, matrices[0].chunks // matrices[0].unit_chunks)
        fragments_at = {m.op: arena.take(len(m.fragments()) * m.fragment_words) for m in matrices}
        powers_at = {m.op: arena.take(m.power_words) for m in matrices if m.raised}
        return cls(units[: len(units) // turns], turns, depth, fragments_at, powers_at)

    @property
    def matrices(self) -> list[Matrix]:
        return list(dict.fromkeys(u.matrix for u in self.units))

    @property
    def turn_tiles(self) -> int:
        """Products of stacked rows in a turn."""
        return sum(u.ends for u in self.units)
