"""The cost model of one kernel over the shapes that matter: what ranks its configurations before any is measured."""

from __future__ import annotations

from collections.abc import Sequence

from vortex.codegen.space import Config
from vortex.ir.core import Function, Module
from vortex.passes.schedule import bytes_per_page
from vortex.targets.gpu import MACHINES
from vortex.targets.target import Target
from vortex.tune.cost import Work, attend_seconds, select_seconds
from vortex.tune.search import Predict
from vortex.tune.shapes import Shape

RESERVED = 3
"""Pages of a row that ``select`` does not score."""


def predictor(program: Module, f: Function, target: Target, shapes: Sequence[Shape]) -> Predict | None:
    """The model's time over the time of the bytes alone, summed over ``shapes``; None where there is no model."""
    kind, machine = f.attrs["kind"], MACHINES.get(target.name)
    if machine is None or kind not in ("select", "attend") or "kv_lora_rank" in program.attrs:
        return None
    page, each = int(program.attrs["page_size"]), bytes_per_page(program, f)

    def seconds(config: Config) -> float:
        total = 0.0
        for s in shapes:
            columns = s.columns(page)
            pages = min(s.kept, columns) if kind == "attend" else max(1, columns - RESERVED)
            work = Work(s.batch * s.kv_heads, pages, each)
            if kind == "attend":
                took = attend_seconds(config, work, page, machine)
            else:
                took = select_seconds(config, work, machine)
            total += took * machine.copy_bandwidth / work.bytes
        return total

    return seconds
