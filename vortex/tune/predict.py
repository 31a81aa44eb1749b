"""The cost model of one kernel over the shapes that matter: what ranks its configurations before any is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from vortex.ir.core import Function, Module
from vortex.ir.dialects.page import block_size
from vortex.kinds.kind import KINDS
from vortex.schedules.cuda_attend import CudaAttend
from vortex.schedules.cuda_select import CudaSelect
from vortex.schedules.later_sweeps import LaterSweeps
from vortex.schedules.space import Config
from vortex.schedules.template import schedulable
from vortex.schedules.traffic import bytes_per_page
from vortex.targets.gpu import MACHINES, Machine
from vortex.targets.target import Target
from vortex.tune.cost import Work, attend_seconds, select_seconds
from vortex.tune.search import Predict
from vortex.tune.shapes import Shape

RESERVED = 3
"""Pages of a row that ``select`` does not score."""

Seconds = Callable[[Config, Work, Machine], float]
"""Of a configuration, what a launch reads, and the machine."""


def _attend(program: Module, f: Function) -> Seconds:
    page = block_size(program)
    return lambda config, work, machine: attend_seconds(config, work, page, machine)


def _select(program: Module, f: Function) -> Seconds:
    @cache
    def later(pages: int, cluster: int, in_registers: int) -> LaterSweeps:
        return LaterSweeps.of(program, f, pages, cluster, in_registers)

    def seconds(config: Config, work: Work, machine: Machine) -> float:
        in_registers = config.get("threads", 256) * config.get("keys", 8)
        return select_seconds(config, work, machine, later(work.pages, config.get("cluster", 1), in_registers))

    return seconds


MODELS: Mapping[type, Callable[[Module, Function], Seconds]] = {CudaAttend: _attend, CudaSelect: _select}
"""The model of each template that has one, for a kernel of it: a model reads the template's knobs."""


def predictor(program: Module, f: Function, target: Target, shapes: Sequence[Shape]) -> Predict | None:
    """The model's time over the time of the bytes alone, summed over ``shapes``; None where there is no model."""
    kind, machine = KINDS[str(f.attrs["kind"])], MACHINES.get(target.name)
    model_of = MODELS.get(type(schedulable(program, f, target)))
    if machine is None or model_of is None or "kv_lora_rank" in program.attrs:
        return None
    page, each, model = block_size(program), bytes_per_page(program, f), model_of(program, f)

    def seconds(config: Config) -> float:
        total = 0.0
        for s in shapes:
            columns = s.columns(page)
            pages = min(s.kept, columns) if kind.pages == "kept" else max(1, columns - RESERVED)
            work = Work(s.batch * s.kv_heads, pages, each)
            total += model(config, work, machine) * machine.copy_bandwidth / work.bytes
        return total

    return seconds
