"""What a step of a rule costs: bytes by the page interpreter, and the time that they are predicted to take on a GPU.

Flows are counted by :mod:`vortex.check.kernel_costs`; baselines have no kernels, so their bytes are those that they
cannot do without, by the same model of time. It is a prediction for comparing rules, and no measurement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vortex.budget import Budget
from vortex.errors import BAD_OPTION
from vortex.ir.types import dtype
from vortex.spec import Spec
from vortex.targets.gpu import MACHINES, Machine
from vortex.targets.roofline import Demand, Times

if TYPE_CHECKING:
    from vortex.flow.flow import vFlow
    from vortex.ir.core import Module
    from vortex.passes.manager import Choose


@dataclass(frozen=True)
class Workload:
    """Where costs are told: one layer's decode step of ``batch`` requests of ``tokens`` tokens each on a GPU.

    Raises:
        VortexError: VX7001 for a target that is no GPU, or numbers below 1.
    """

    batch: int = 32
    tokens: int = 32768
    kv_heads: int = 8
    spec: Spec = field(default_factory=Spec)
    target: str = "sm_90a"

    def __post_init__(self) -> None:
        if self.target not in MACHINES:
            hint = f"one of {', '.join(MACHINES)}"
            raise BAD_OPTION.at(option="target of costs", why=f"'{self.target}' is no GPU that is known", hint=hint)
        for name in ("batch", "tokens", "kv_heads"):
            if getattr(self, name) < 1:
                raise BAD_OPTION.at(option=f"{name} of costs", why="must be at least 1", hint="give more")

    @property
    def machine(self) -> Machine:
        return MACHINES[self.target]

    @property
    def rows(self) -> int:
        """(request, KV head) pairs."""
        return self.batch * self.kv_heads

    @property
    def pages(self) -> int:
        """Pages of a request, blocks where pages have several; all full."""
        return max(1, self.tokens // self.spec.block_size)

    def __str__(self) -> str:
        of = f"{self.kv_heads} KV heads, {self.spec}" if not self.spec.kv_lora_rank else str(self.spec)
        return f"one layer's step of {self.batch} requests of {self.tokens} tokens, {of}, {self.machine.name}"


@dataclass(frozen=True)
class Cost:
    """Of one layer's step.

    Attributes:
        bytes: read and written, all rows.
        microseconds: predicted.
        kernels: bytes of each kernel, ``plan`` aside, which runs once for all layers.
    """

    bytes: float
    microseconds: float
    kernels: Mapping[str, float] = field(default_factory=dict)


def cost_of_flow(
    flow: type[vFlow] | vFlow, budgets: Iterable[int], at: Workload, sink: int = 1, recent: int = 2
) -> dict[int, Cost]:
    """Costs of a flow, by how many candidate pages it keeps beside the first ``sink`` and the last ``recent``.

    Pages are counted on random numbers, so a flow that decides by its scores how many pages it takes is counted with
    what it takes of those.

    Raises:
        VortexError: whatever the flow does wrong at the model shape of ``at``.
    """
    from vortex.check.kernel_costs import Step, kernel_costs, layer_microseconds
    from vortex.tune.choose import chooser

    program, made = _program(flow, at.spec, at.target, chooser()), {}
    layer = _layer(program)
    for budget in budgets:
        step = Step(at.rows, at.tokens, Budget(budget, 0, sink, recent))
        costs = [c for c in kernel_costs(program, at.spec, step, at.machine) if c.kernel in layer]
        by_kernel = {c.kernel: c.read + c.written for c in costs}
        made[budget] = Cost(sum(by_kernel.values()), layer_microseconds(program, costs), by_kernel)
    return made


def bytes_of_flow(
    flow: type[vFlow] | vFlow, budgets: Iterable[int], at: Workload, sink: int = 1, recent: int = 2
) -> dict[int, float]:
    """The bytes of :func:`cost_of_flow` alone, of any shape that a CPU runs, whether or not kernels for GPUs take it.

    Raises:
        VortexError: whatever the flow does wrong at the model shape of ``at``.
    """
    from vortex.check.step_bytes import count_step

    program, made = _program(flow, at.spec, "cpu"), {}
    layer = _layer(program)
    for budget in budgets:
        steps = count_step(program, at.spec, at.tokens, Budget(budget, 0, sink, recent))
        made[budget] = at.rows * sum(s.total for s in steps if s.kernel in layer)
    return made


def _program(flow: type[vFlow] | vFlow, spec: Spec, target: str, choose: Choose | None = None) -> Module:
    """Page IR of a flow."""
    from vortex.driver import compile_flow
    from vortex.flow.trace import trace
    from vortex.targets.target import TARGETS

    return compile_flow(trace(flow, spec), targets=[TARGETS[target]], to="page", choose=choose).programs[target]


def _layer(program: Module) -> set[str]:
    """Kernels that run in each layer."""
    return {f.name for f in program.functions.values() if f.attrs["kind"] != "plan"}


def cost_of_baseline(rule: str, budget: int, at: Workload, sink: int = 1, recent: int = 2) -> Cost:
    """Of ``dense``, ``oracle``, ``random`` or ``recent``, had they kernels: the bytes that they cannot do without.

    The oracle reads all keys to know the mass of every page, and then K and V of the pages that it keeps.
    """
    spec, pages = at.spec, at.pages
    kept = pages if rule == "dense" else min(pages, budget + sink + recent)
    query, out = spec.group * spec.head_dim, spec.group * spec.v_dim
    io = (query + out) * dtype(spec.dtype).bytes + 4 * spec.group
    token = spec.head_dim * len(spec.pools)
    stored = token * (dtype(spec.dtype).bytes + dtype(spec.kv_dtype).bytes)
    page = spec.block_size * dtype(spec.kv_dtype).bytes
    kernels: dict[str, float] = {"append": stored, "attend": kept * page * token + io}
    if rule == "oracle":
        kernels["select"] = pages * page * spec.head_dim + query * dtype(spec.dtype).bytes
    every = {name: at.rows * n for name, n in kernels.items()}
    seconds = sum(Times.of(Demand(n), at.machine).seconds for n in every.values())
    return Cost(sum(every.values()), 1e6 * seconds, every)
