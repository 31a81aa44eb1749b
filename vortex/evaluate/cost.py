"""What a step of a rule costs: bytes by the page interpreter, and the time that they take on a GPU by a stated model.

The model knows three things: the bytes of a kernel at the speed of a copy, scalar arithmetic where it outlasts them,
and what a launch takes whatever it moves. It is a prediction for comparing rules, and no measurement.
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

if TYPE_CHECKING:
    from vortex.flow.flow import vFlow
    from vortex.ir.core import Module

LAUNCH = 5.0e-6
"""Seconds that each kernel of a layer takes beside its bytes: launch, work lists, choosing the best pages. Fitted to
the layers of bench/results/h200/layer.json, from 1 request to 128."""


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
    from vortex.check.remarks import scalar_work
    from vortex.check.step_bytes import count_step
    from vortex.driver import compile_flow
    from vortex.flow.trace import trace
    from vortex.targets.target import TARGETS

    program = compile_flow(trace(flow, at.spec), targets=[TARGETS[at.target]], to="page").programs[at.target]
    slower = {
        f.name: max(1.0, scalar_work(program, f).beside_memory(at.machine))
        for f in program.functions.values()
        if f.attrs["kind"] == "select"
    }
    made = {}
    for budget in budgets:
        steps = count_step(program, at.spec, at.tokens, Budget(budget, 0, sink, recent))
        made[budget] = _cost({s.kernel: s.total for s in steps if s.kernel in _layer(program)}, at, slower)
    return made


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
    return _cost(kernels, at, {})


def _cost(row: Mapping[str, float], at: Workload, slower: Mapping[str, float]) -> Cost:
    """From the bytes of each kernel for one row, and how many times as long as its bytes a kernel computes."""
    every = {name: at.rows * n for name, n in row.items()}
    seconds = sum(LAUNCH + n * slower.get(name, 1.0) / at.machine.copy_bandwidth for name, n in every.items())
    return Cost(sum(every.values()), 1e6 * seconds, every)
