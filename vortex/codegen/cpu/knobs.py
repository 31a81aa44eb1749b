"""What the templates for CPUs leave open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from vortex.ir.core import Attr, Function, Module


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


def schedule_of(program: Module, f: Function) -> dict[str, Attr]:
    """The schedule with every knob the kernel is built with."""
    schedule = f.attrs.get("schedule", {})
    return {**schedule, **choose(schedule).attrs()}


UNROLLS = (1, 2, 4, 8, 16)
PREFETCHES = (0, 2, 4, 8, 16)


def append_points(program: Module, f: Function) -> list[dict[str, Attr]]:
    """All points a tuner may try in ``append``."""
    return _points((CpuKnobs().unroll,), (CpuKnobs().prefetch,))


def select_points(program: Module, f: Function) -> list[dict[str, Attr]]:
    """All points a tuner may try in ``select``."""
    return _points(UNROLLS, PREFETCHES)


def attend_points(program: Module, f: Function) -> list[dict[str, Attr]]:
    """All points a tuner may try in ``attend``."""
    return _points(UNROLLS, (CpuKnobs().prefetch,))


def _points(unrolls: Sequence[int], prefetches: Sequence[int]) -> list[dict[str, Attr]]:
    return [CpuKnobs(lanes, n, ahead).attrs() for lanes in (4, 8, 16, 32) for n in unrolls for ahead in prefetches]
