"""What the templates for CPUs leave open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from vortex.ir.core import Function, Module
from vortex.schedules.knobs import Knobs, knob
from vortex.schedules.template import Schedulable, declare
from vortex.targets.target import Target

LANES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class CpuKnobs(Knobs):
    """Of loop nests: ``append`` and ``attend``."""

    lanes: int = knob(16, "numbers of a vector, as fp32", only=LANES)
    unroll: int = knob(8, "outputs that share one load", least=1, most=64)


@dataclass(frozen=True, slots=True)
class CpuSelectKnobs(CpuKnobs):
    """Of ``select``, which knows early which pages it will read."""

    prefetch: int = knob(8, "pages that summaries are asked for ahead of their use; 0 for never", most=1024)


@declare
class CpuAppend(Schedulable[CpuKnobs]):
    target, kind, version, knobs = "cpu", "append", 2, CpuKnobs

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> CpuKnobs:
        return CpuKnobs(**given)

    def space(self, program: Module, f: Function, target: Target) -> Iterable[CpuKnobs]:
        return (CpuKnobs(lanes) for lanes in (4, 8, 16, 32))


@declare
class CpuAttend(Schedulable[CpuKnobs]):
    target, kind, version, knobs = "cpu", "attend", 2, CpuKnobs

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> CpuKnobs:
        return CpuKnobs(**given)

    def space(self, program: Module, f: Function, target: Target) -> Iterable[CpuKnobs]:
        return (CpuKnobs(lanes, unroll) for lanes, unroll in product((4, 8, 16, 32), (1, 2, 4, 8, 16)))


@declare
class CpuSelect(Schedulable[CpuSelectKnobs]):
    target, kind, version, knobs = "cpu", "select", 1, CpuSelectKnobs

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> CpuSelectKnobs:
        return CpuSelectKnobs(**given)

    def space(self, program: Module, f: Function, target: Target) -> Iterable[CpuSelectKnobs]:
        points = product((4, 8, 16, 32), (1, 2, 4, 8, 16), (0, 2, 4, 8, 16))
        return (CpuSelectKnobs(lanes, unroll, prefetch) for lanes, unroll, prefetch in points)
