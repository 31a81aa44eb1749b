"""What ``plan`` leaves open on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vortex.ir.core import Attr, Function, Module
from vortex.schedules.knobs import Knobs, knob
from vortex.schedules.template import Schedulable, declare
from vortex.targets.target import Target


@dataclass(frozen=True, slots=True)
class PlanKnobs(Knobs):
    """Of the one CTA of ``plan``, and of the work lists that it writes."""

    threads: int = knob(1024, "threads of the CTA", least=32, most=1024, step=32)
    select_pages: int = knob(128, "fewest pages worth a work item of select", least=1)
    attend_pages: int = knob(8, "fewest pages worth a work item of attend", least=1)
    attend_busy: int = knob(
        16, "the same once every second slot has an item: to meet costs more than it saves", least=1
    )
    overlap: int = knob(1, "whether it may be launched before the kernel in front of it has ended", only=(0, 1))


@declare
class CudaPlan(Schedulable[PlanKnobs]):
    target, kind, version, knobs = "cuda", "plan", 1, PlanKnobs
    scratch = ("work", "arrivals")
    looked_up = ("select_pages", "attend_pages", "attend_busy")

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> PlanKnobs:
        return PlanKnobs(**given)

    def space(self, program: Module, f: Function, target: Target) -> Iterable[PlanKnobs]:
        sizes = [(a, b) for a in (4, 8, 16) for b in (8, 16, 32) if a <= b]
        return (PlanKnobs(1024, s, a, b) for s in (64, 128, 256, 512) for a, b in sizes)

    def facts(self, program: Module, f: Function, knobs: PlanKnobs) -> dict[str, Attr]:
        return {"bytes_in_flight": 4 * knobs.threads}
