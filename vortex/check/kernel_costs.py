"""What each kernel of a step costs at a shape: bytes by the page interpreter, arithmetic by the IR, and the time that
they are predicted to take on a GPU (:mod:`vortex.targets.roofline`).

This is the one place in which bytes become microseconds; the models of :mod:`vortex.tune.cost` rank configurations of
one kernel and predict nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vortex.budget import Budget
from vortex.check.step_bytes import StepBytes, count_step
from vortex.ir.core import Function, Module
from vortex.ir.dialects import page
from vortex.ir.staging import axis_of
from vortex.ir.types import TensorType
from vortex.kinds.kind import KINDS
from vortex.schedules.arithmetic import Arithmetic, flops_of
from vortex.schedules.check import described
from vortex.schedules.select_memory import shortlists
from vortex.spec import Spec
from vortex.targets.gpu import Machine
from vortex.targets.roofline import Demand, Times, number
from vortex.targets.target import TARGETS

Numbers = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Step:
    """One layer's decode step: ``rows`` of (request, KV head) with ``tokens`` tokens each."""

    rows: int
    tokens: int
    budget: Budget


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel as it was compiled: its schedule, and its resources where ptxas reported them."""

    schedule: Numbers = field(default_factory=dict)
    resources: Numbers = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KernelCost:
    """Of one kernel, over all rows."""

    kernel: str
    read: float
    written: float
    flops: float
    """The flow's own arithmetic, a product and a sum counted as two."""
    times: Times

    @property
    def microseconds(self) -> float:
        """Predicted."""
        return 1e6 * self.times.seconds

    def as_json(self) -> dict[str, object]:
        """Numbers as numbers; the schema is in docs/explain.md."""
        return {
            "kernel": self.kernel,
            "read": round(self.read),
            "written": round(self.written),
            "flops": round(self.flops),
            "microseconds": round(self.microseconds, 2),
            "limiter": self.times.limiter,
            "shares": {name: round(share, 4) for name, share in self.times.shares.items()},
        }


def kernel_costs(
    program: Module, spec: Spec, step: Step, machine: Machine, compiled: Mapping[str, Compiled] | None = None
) -> list[KernelCost]:
    """Costs of every kernel of a page program for a GPU, ``plan`` included, which runs once for all layers.

    Where ``compiled`` says by name what kernels take of the GPU, their CTAs, spills and bytes in flight count too.
    """
    steps = count_step(program, spec, step.tokens, step.budget)
    plan = next((c.schedule for n, c in (compiled or {}).items() if program.functions[n].attrs["kind"] == "plan"), {})
    return [_cost(program, s, spec, step, machine, (compiled or {}).get(s.kernel), plan) for s in steps]


def _cost(
    program: Module, s: StepBytes, spec: Spec, step: Step, machine: Machine, compiled: Compiled | None, plan: Numbers
) -> KernelCost:
    f = program.functions[s.kernel]
    rows = 1 if f.attrs["kind"] == "plan" else step.rows
    pages = _pages(program, f, spec, step)
    work = _demand(program, f, rows * s.total, rows, pages, machine, compiled, plan)
    return KernelCost(
        s.kernel, rows * s.read, rows * s.written, rows * _flops(program, f, pages), Times.of(work, machine)
    )


def _pages(program: Module, f: Function, spec: Spec, step: Step) -> float:
    """Pages of a row that a kernel goes over, blocks where pages have several."""
    cap, n = page.cap_of(program), max(1, step.tokens // spec.block_size)
    # a page fills once in as many steps as it has tokens
    of = {"filled": 1 / spec.block_size, "scored": cap.scored(step.budget, n), "kept": cap.kept(step.budget, n)}
    return of.get(KINDS[str(f.attrs["kind"])].pages, 0)


def _demand(
    program: Module,
    f: Function,
    size: float,
    rows: int,
    pages: float,
    machine: Machine,
    compiled: Compiled | None,
    plan: Numbers,
) -> Demand:
    """What a kernel asks of the GPU for all rows, of which it moves ``size`` bytes."""
    kind = str(f.attrs["kind"])
    facts = described(program, f, TARGETS[str(program.attrs["target"])])
    made = Demand(size, flops=size * number(facts, "flops_per_byte"))
    if compiled is not None and compiled.resources:
        schedule = {**facts, **compiled.schedule}
        # where plan's knobs say how rows are cut into items, each is the work of one CTA or of several
        least = number(plan, f"{kind}_pages")
        items = rows * max(1.0, pages // least if least else 1.0) * max(1.0, number(schedule, "item_ctas"))
        made = Demand.of_bytes(size, schedule, compiled.resources, machine, items)
    if kind != "select":
        return made
    # pages of a shortlist are fewer than candidates: by the row, and not by the byte
    work = Arithmetic.of(program, f)
    return replace(made, scalar=rows * work.scalar(pages), flops=rows * work.flops(pages), lists=len(shortlists(f)))


def _flops(program: Module, f: Function, pages: float) -> float:
    """The flow's arithmetic for a row of so many pages."""
    total = 0.0
    for o in f.ops:
        if isinstance(o, page.Attend):
            keys, out = program.decls[o.keys].type, o.value.type
            assert isinstance(keys, TensorType) and isinstance(out, TensorType)
            tokens, dim = keys.tile
            heads, v_dim = out.tile
            total += 2 * heads * (dim + v_dim) * tokens * pages
        elif pages:
            axis = axis_of(o)
            total += flops_of(o) * (pages if f.attrs["kind"] == "append" else axis.pages(int(pages)) if axis else 1)
    return total
