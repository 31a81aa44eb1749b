"""What each kernel of a step costs at a shape: bytes by the page interpreter, arithmetic by the IR, and the time that
they are predicted to take on a GPU (:mod:`vortex.targets.roofline`).

This is the one place in which bytes become microseconds; the models of :mod:`vortex.tune.cost` rank configurations of
one kernel and predict nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vortex.budget import Budget
from vortex.check.step_bytes import StepBytes, count_step
from vortex.ir import digest
from vortex.ir.core import Function, Module
from vortex.ir.dialects import page
from vortex.ir.staging import axis_of
from vortex.ir.types import TensorType
from vortex.kinds.buckets import Bucket, bucket_of
from vortex.kinds.kind import KINDS
from vortex.schedules.arithmetic import Arithmetic, flops_of
from vortex.schedules.check import described
from vortex.schedules.form import form_of
from vortex.schedules.later_sweeps import LaterSweeps
from vortex.schedules.matrices import matrices_of
from vortex.schedules.taken_in import takes_in_tokens
from vortex.schedules.variants import variant_for
from vortex.spec import Spec
from vortex.targets.gpu import WARP, Machine
from vortex.targets.predicted import LARGE, LAUNCHED, Kind, Shape, Worth, worth_of
from vortex.targets.roofline import UNLISTED_LAUNCH, Demand, Times, number
from vortex.targets.target import TARGETS

Numbers = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Step:
    """One layer's decode step: ``rows`` of (request, KV head) with ``tokens`` tokens each."""

    rows: int
    tokens: int
    budget: Budget

    @property
    def kept(self) -> int:
        """Pages of a row, the reserved ones included."""
        return self.budget.pages + self.budget.sink + self.budget.recent

    def bucket(self, kind: str, spec: Spec) -> Bucket:
        """The bucket that kernels of a kind are chosen by."""
        return bucket_of(kind, self.rows, -(-self.tokens // spec.block_size), self.kept)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel as it was compiled: its schedule, and its resources where ptxas reported them."""

    schedule: Numbers = field(default_factory=dict)
    resources: Numbers = field(default_factory=dict)
    tensor_cores: bool = True
    """Whether its text has instructions of tensor cores, as far as contractions can be on them."""


@dataclass(frozen=True, slots=True)
class KernelCost:
    """Of one kernel, over all rows."""

    kernel: str
    read: float
    written: float
    flops: float
    """The flow's own arithmetic, a product and a sum counted as two."""
    times: Times
    like: Kind
    """What it is measured by where it was not measured itself."""
    ir: str
    """The structural hash of its IR; empty where it was compiled otherwise than it would be today."""
    shape: Shape
    cluster: int = 1
    """CTAs that share a row; 1 where they meet by its last one."""

    @property
    def microseconds(self) -> float:
        """Predicted."""
        return 1e6 * self.times.seconds

    @property
    def worth(self) -> Worth | None:
        """What the prediction is worth; None of ``plan``, whose time is that of its launch."""
        return worth_of(self.like, self.ir, self.shape) if self.like.kind != "plan" else None

    def as_json(self) -> dict[str, object]:
        """Numbers as numbers; the schema is in docs/explain.md."""
        return {
            "kernel": self.kernel,
            "read": round(self.read),
            "written": round(self.written),
            "flops": round(self.flops),
            "microseconds": round(self.microseconds, 2),
            "limiter": self.times.limiter,
            "cluster": self.cluster,
            "shares": {name: round(share, 4) for name, share in self.times.shares.items()},
            "worth": worth.text if (worth := self.worth) else "",
            "off": worth is not None and worth.off,
        }


def kernel_costs(
    program: Module,
    spec: Spec,
    step: Step,
    machine: Machine,
    compiled: Mapping[str, Compiled] | None = None,
    counted: Sequence[StepBytes] | None = None,
) -> list[KernelCost]:
    """Costs of every kernel of a page program for a GPU, ``plan`` included, which runs once for all layers.

    Of a kernel with variants it is the one for the step. Where ``compiled`` says by name what kernels take of the GPU,
    their CTAs, spills and bytes in flight count too; a schedule that it has is the one that runs. ``counted`` is what
    :func:`count_step` makes of the step, for who has it: it depends on the tokens and the budget alone.
    """
    steps = count_step(program, spec, step.tokens, step.budget) if counted is None else counted
    plan = next((c.schedule for n, c in (compiled or {}).items() if program.functions[n].attrs["kind"] == "plan"), {})
    return [_cost(program, s, spec, step, machine, (compiled or {}).get(s.kernel), plan) for s in steps]


def layer_microseconds(program: Module, costs: Iterable[KernelCost]) -> float:
    """What one layer's decode step is predicted to take: without ``plan``, which runs once for all layers, and without
    a launch of ``append`` where ``select`` takes its work in, whose bytes are moved all the same.
    """
    every = sum(c.microseconds for c in costs if c.like.kind != "plan")
    return every - (1e6 * UNLISTED_LAUNCH if takes_in_tokens(program) else 0.0)


def _cost(
    program: Module, s: StepBytes, spec: Spec, step: Step, machine: Machine, compiled: Compiled | None, plan: Numbers
) -> KernelCost:
    f = program.functions[s.kernel]
    schedule = _schedule(program, f, step.bucket(str(f.attrs["kind"]), spec), compiled)
    rows = 1 if f.attrs["kind"] == "plan" else step.rows
    pages = _pages(program, f, spec, step)
    work = _demand(program, f, rows * s.total, rows, pages, machine, schedule, compiled, plan)
    times, cluster = Times.of(work, machine), _cluster(schedule)
    large = rows * s.total > LARGE
    limiter = times.limiter if large or 4 * times.busy > times.seconds else LAUNCHED
    return KernelCost(
        kernel=s.kernel,
        read=rows * s.read,
        written=rows * s.written,
        flops=rows * _flops(program, f, pages),
        times=times,
        like=Kind(machine.name, str(f.attrs["kind"]), form_of(program, f, cluster), limiter, large),
        ir="" if _is_otherwise(program, f, compiled) else digest.kernel(program, f),
        shape=Shape(step.rows, step.tokens, step.kept, spec.page_size),
        cluster=cluster,
    )


def _schedule(program: Module, f: Function, bucket: Bucket, compiled: Compiled | None) -> Numbers:
    """The schedule of a kernel as a manifest has it: as it was compiled, or of the variant for steps of a bucket."""
    target = TARGETS[str(program.attrs["target"])]
    if compiled is None or not compiled.schedule:
        return described(program, variant_for(f, bucket), target)
    return {**described(program, f, target), **compiled.schedule}


def _is_otherwise(program: Module, f: Function, compiled: Compiled | None) -> bool:
    """Whether a kernel was compiled without the tensor cores that it would be given today."""
    return (
        compiled is not None
        and not compiled.tensor_cores
        and f.attrs["kind"] == "select"
        and bool(matrices_of(program, f))
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
    schedule: Numbers,
    compiled: Compiled | None,
    plan: Numbers,
) -> Demand:
    """What a kernel asks of the GPU for all rows, of which it moves ``size`` bytes."""
    kind, cluster = str(f.attrs["kind"]), _cluster(schedule)
    made = Demand(size, flops=size * number(schedule, "flops_per_byte"))
    if cluster > 1:
        # whatever plan says; and as few CTAs as rows ask for are few even where nothing says what fits an SM
        took = compiled.resources if compiled is not None and compiled.resources else _asked(schedule)
        made = Demand.of_bytes(size, schedule, took, machine, rows * cluster)
    elif compiled is not None and compiled.resources:
        # where plan's knobs say how rows are cut into items, each is the work of one CTA or of several
        least = number(plan, f"{kind}_pages")
        items = rows * max(1.0, pages // least if least else 1.0) * max(1.0, number(schedule, "item_ctas"))
        made = Demand.of_bytes(size, schedule, compiled.resources, machine, items)
    if kind != "select":
        return replace(made, launch=UNLISTED_LAUNCH) if kind == "append" else made
    # pages of a shortlist are fewer than candidates: by the row, and not by the byte
    work = Arithmetic.of(program, f, tensor_cores=compiled is None or compiled.tensor_cores)
    in_registers = int(number(schedule, "threads") * number(schedule, "keys"))
    later = LaterSweeps.of(program, f, pages, cluster, in_registers)
    return replace(
        made,
        # what is done of a shortlist's pages is in the time that each of them takes
        scalar=rows * work.of_candidates.scalar(pages),
        flops=rows * work.flops(pages),
        lists=later.lists,
        listed=later.listed,
        kept_words=later.chosen_from + later.swept,
        far_words=later.far,
        waits=later.waits,
    )


def _cluster(schedule: Numbers) -> int:
    """CTAs that share a row; 1 where a kernel has no such knob."""
    return max(1, int(number(schedule, "cluster")))


def _asked(schedule: Numbers) -> Numbers:
    """What a kernel takes of an SM where its schedule has its way."""
    threads, ctas = number(schedule, "threads"), max(1.0, number(schedule, "residents"))
    return {"threads": threads, "ctas": ctas, "warps": ctas * threads / WARP}


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
