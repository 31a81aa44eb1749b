"""What the templates for CPUs leave open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from vortex.ir.core import Attr


@dataclass(frozen=True, slots=True)
class CpuKnobs:
    """``lanes`` of a vector in fp32 numbers, ``unroll`` outputs that share one load of a summary, ``prefetch`` pages
    that summaries are asked for ahead of their use (``select`` only; 0 for never).
    """

    lanes: int = 16
    unroll: int = 8
    prefetch: int = 8

    def attrs(self) -> dict[str, Attr]:
        return dict(asdict(self))


def choose(schedule: Mapping[str, Attr]) -> CpuKnobs:
    """The knobs that the schedule names, defaults for the rest."""
    return CpuKnobs(**{n: int(schedule.get(n, x)) for n, x in CpuKnobs().attrs().items()})


def space(kind: str) -> list[CpuKnobs]:
    """All points a tuner may try for kernels of one kind."""
    unrolls = (1, 2, 4, 8, 16) if kind != "append" else (8,)
    ahead = (0, 2, 4, 8, 16) if kind == "select" else (CpuKnobs().prefetch,)
    return [CpuKnobs(lanes, unroll, prefetch) for lanes in (4, 8, 16, 32) for unroll in unrolls for prefetch in ahead]
