"""What ``plan`` leaves open on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vortex.ir.core import Attr, Function, Module
from vortex.ir.dialects import page
from vortex.schedules.knobs import Knobs, knob
from vortex.schedules.template import Schedulable, declare
from vortex.schedules.traffic import bytes_per_page
from vortex.targets.target import Target


@dataclass(frozen=True, slots=True)
class PlanKnobs(Knobs):
    """Of the one CTA of ``plan``, and of the work lists that it writes."""

    threads: int = knob(1024, "threads of the CTA", least=64, most=1024, step=64)
    select_pages: int = knob(
        128, "fewest pages worth a work item of select", least=1, chosen="128; up to 2048 where summaries are short"
    )
    attend_pages: int = knob(
        8, "fewest pages worth a work item of attend", least=1, chosen="8; under MLA those of 128 tokens"
    )
    attend_busy: int = knob(
        16, "the same once every second slot has an item: to meet costs more than it saves", least=1,
        chosen="16; under MLA those of 256 tokens",
    )  # fmt: skip
    overlap: int = knob(1, "whether it may be launched before the kernel in front of it has ended", only=(0, 1))


MEETING = 16 << 10
"""Bytes of summaries that a CTA reads in about the time that CTAs take to meet."""
MOST_PAGES = 2048
"""Of the fewest that are worth an item: a CTA has so many keys in registers."""


def worth_an_item(program: Module) -> int:
    """The fewest pages that are worth an item of ``select``: more where little is read of each."""
    least = PlanKnobs().select_pages
    sizes = [bytes_per_page(program, f) for f in program.functions.values() if f.attrs.get("kind") == "select"]
    return min(MOST_PAGES, max(least, MEETING // max(sizes))) if any(sizes) else least


LATENT_TOKENS = 128
"""Of the fewest pages that are worth an item of ``attend`` under MLA; twice as many once every second slot has one."""


def worth_an_item_of_attend(program: Module) -> dict[str, int]:
    """The same of ``attend``. A page's latent rows are the work of one CTA, however many tokens it has."""
    if "kv_lora_rank" not in program.attrs:
        return {}
    size = page.block_size(program)
    return {"attend_pages": max(1, LATENT_TOKENS // size), "attend_busy": max(1, 2 * LATENT_TOKENS // size)}


@declare
class CudaPlan(Schedulable[PlanKnobs]):
    target, kind, version, knobs = "cuda", "plan", 1, PlanKnobs
    scratch = ("work", "arrivals")
    looked_up = ("select_pages", "attend_pages", "attend_busy")

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> PlanKnobs:
        found = {"select_pages": worth_an_item(program), **worth_an_item_of_attend(program)}
        return PlanKnobs(**{**found, **given})

    def space(self, program: Module, f: Function, target: Target) -> Iterable[PlanKnobs]:
        sizes = [(a, b) for a in (4, 8, 16) for b in (8, 16, 32) if a <= b]
        return (PlanKnobs(1024, s, a, b) for s in (64, 128, 256, 512) for a, b in sizes)

    def facts(self, program: Module, f: Function, knobs: PlanKnobs) -> dict[str, Attr]:
        return {"bytes_in_flight": 4 * knobs.threads}
