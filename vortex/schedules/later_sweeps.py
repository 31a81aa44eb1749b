"""What is done of a row of ``select`` behind its first sweep, told from the IR and the CTAs that share a row.

of 2045 candidates, a shortlist of 64           one CTA              a cluster of 8
keys, from which each CTA chooses for itself    2045 words           2045 words
keys, from which all choose together            (one CTA does)       an eighth
what else is kept of candidates                 its words            an eighth
pages of the list                               64                   8, of one page tile
waits for each other                            none                 behind each sweep that they share

Predicted times and the ranking of configurations take it from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from vortex.ir.core import Function, Module
from vortex.ir.staging import stage
from vortex.schedules.kept_words import KeptWords
from vortex.schedules.page_tiles import tile_of
from vortex.schedules.select_memory import shortlists
from vortex.schedules.shared_sweeps import chosen_together, shared_sweeps

NEAR = 8192
"""Keys that shared memory has room for by default."""
MEETINGS = 2
"""Barriers of a cluster that chooses together, of scores that differ: behind the counts, and behind what is listed."""


@dataclass(frozen=True, slots=True)
class LaterSweeps:
    """Of the CTA of a row that has most to do."""

    lists: int
    """Shortlists that it chooses."""
    listed: float
    """Their pages that it reads."""
    chosen_from: float
    """Words that it chooses from, and what was kept of the pages of lists."""
    far: float
    """Keys beyond those: of a row that long it reads the greatest of each page tile, and few others."""
    swept: float
    """Words that its later sweeps over candidates read."""
    waits: int
    """Barriers of its cluster."""
    choosers: int
    """CTAs among which the keys are dealt out."""

    @classmethod
    def of(cls, program: Module, f: Function, pages: float, cluster: int, in_registers: int) -> LaterSweeps:
        """Of a kernel, for rows of so many candidates and ``cluster`` CTAs each, the threads of one of which hold so
        many keys ``in_registers``.
        """
        kept, tiles = KeptWords.of(f), {axis: tile_of(axis) for axis in stage(f).axes if axis.listed}
        lists = {axis: min(pages, axis.limit) for axis in tiles}
        # page tiles are dealt out
        most = {axis: min(n, ceil(ceil(n / tiles[axis]) / cluster) * tiles[axis]) for axis, n in lists.items()}
        together = cluster > 1 and pages > in_registers and chosen_together(f) is not None
        choosers = cluster if together else 1
        near = pages / choosers if together else min(pages, NEAR)
        swept = len(kept.of_candidates) - len(kept.ranked) - len(kept.listed)
        return cls(
            lists=len(shortlists(f)),
            listed=sum(most.values()),
            chosen_from=near * len(kept.ranked) + max(lists.values(), default=0) * len(kept.listed),
            far=0.0 if together else (pages - near) * len(kept.ranked),
            swept=pages * swept / cluster,
            waits=shared_sweeps(program, f) + MEETINGS * together if cluster > 1 else 0,
            choosers=choosers,
        )
