"""What is known of a program's speed: bytes, arithmetic, predicted times and remarks, by one function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vortex.budget import Budget
from vortex.check.bounds import counted_tokens, why_fewer
from vortex.check.explanation import WhyNot, explain_stored
from vortex.check.kernel_costs import Compiled, Step, kernel_costs
from vortex.check.step_bytes import StepBytes, count_step
from vortex.compilation.stored import Stored, StoredKernel
from vortex.errors import VortexError
from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.kinds.buckets import buckets_of, serving
from vortex.remarks.contractions import contractions
from vortex.remarks.remark import Remark
from vortex.report.model import Cost
from vortex.spec import Spec
from vortex.targets.gpu import MACHINES
from vortex.tune.shapes import Shape

RESERVED = 3
"""Pages of a row that are kept without being scored: the first and the two last."""
MATRIX_INSTRUCTIONS = ("mma", "wgmma", "tcgen05")
"""Of which a kernel's text has one where it uses tensor cores."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """Of one program; costs by kernel."""

    costs: Mapping[str, Cost] = field(default_factory=dict)
    why_no_costs: str = ""
    remarks: tuple[Remark, ...] = ()
    failed: str = ""
    """Why there is nothing of all this."""


def assess(stored: Stored, target: str, program: Module, shape: Shape, why_not: WhyNot) -> Assessment:
    """What is known of ``program`` at one layer's step of ``shape``; ``why_not`` asks the tuning databases."""
    try:
        program = _with_schedules(program, stored, target)
        costs, why = _costs(stored, target, program, shape)
        whole = replace(stored, programs={target: program})
        found = explain_stored(whole, target, why_not).remarks if target in stored.programs else ()
        kernels = [k for k in stored.kernels if k.target == target and target in MACHINES]
        return Assessment(costs, why, tuple(_as_compiled(found, program, kernels)))
    except Exception as e:  # IR that was edited by hand, or made by another vortex, may break any rule
        why = e.message if isinstance(e, VortexError) else f"{type(e).__name__}: {e}"
        return Assessment({}, why, failed=why)


def _with_schedules(program: Module, stored: Stored, target: str) -> Module:
    """The program with the schedules that its kernels were built with: the IR of an older vortex does not say all."""
    built = {k.name: k.schedule for k in stored.kernels if k.target == target}
    functions = {
        name: replace(f, attrs={**f.attrs, "schedule": {**built.get(name, {}), **f.attrs.get("schedule", {})}})
        for name, f in program.functions.items()
    }
    return replace(program, functions=functions)


def _costs(stored: Stored, target: str, program: Module, shape: Shape) -> tuple[dict[str, Cost], str]:
    """The cost of each kernel over all rows, or none and why."""
    if not stored.flow:
        return {}, "the flow's own IR is not kept, by which the interpreter's work is bounded"
    module, spec = parse_module(stored.flow, f"{stored.name}.flow"), Spec.of_attrs(program.attrs)
    if counted_tokens(module, spec, shape.tokens) < shape.tokens:
        return {}, f"they would take too long to count: {why_fewer(module)}"
    rows, budget = shape.batch * shape.kv_heads, Budget(max(1, shape.kept - RESERVED))
    made = {s.kernel: _bytes(s, rows) for s in count_step(program, spec, shape.tokens, budget)}
    if target not in MACHINES:
        return made, ""
    step = Step(rows, shape.tokens, budget)
    mine = {
        name: Compiled(k.schedule, k.resources, tensor_cores=not _is_scalar(k))
        for name in program.functions
        if (k := _kernel_at(stored, target, name, step, spec)) is not None
    }
    for machine in MACHINES.values():
        # what ptxas reported is of the target's own GPU
        known = mine if machine is MACHINES[target] else {}
        for c in kernel_costs(program, spec, step, machine, known):
            cost = made[c.kernel]
            # plan runs once for all rows
            part = (c.read + c.written) / (cost.read + cost.written or 1.0)
            made[c.kernel] = replace(
                cost,
                buffers={name: part * n for name, n in cost.buffers.items()},
                read=c.read,
                written=c.written,
                flops=c.flops,
                microseconds={**cost.microseconds, machine.name: c.microseconds},
                limiter={**cost.limiter, machine.name: c.times.limiter},
                worth={**cost.worth, **({machine.name: worth.text} if (worth := c.worth) else {})},
                off={**cost.off, **({machine.name: worth.off} if worth else {})},
            )
    return made, ""


def _kernel_at(stored: Stored, target: str, name: str, step: Step, spec: Spec) -> StoredKernel | None:
    """The kernel that a step runs: the one of that name, or a variant of it; None where none was compiled."""
    every = [k for k in stored.kernels if (k.target, k.schedule.get("variant_of", k.name)) == (target, name)]
    every.sort(key=lambda k: k.name != name)
    return serving(step.bucket(every[0].kind, spec), [(k, buckets_of(k.schedule)) for k in every]) if every else None


def _bytes(s: StepBytes, rows: int) -> Cost:
    return Cost(rows * s.read, rows * s.written, {name: rows * n for name, n in s.buffers.items()})


def _as_compiled(found: Sequence[Remark], program: Module, kernels: Sequence[StoredKernel]) -> Iterator[Remark]:
    """The remarks, but of a contraction whose kernel's very text has no instruction of tensor cores that it has none,
    whatever would be chosen today.
    """
    scalar = {k.name for k in kernels if k.kind == "select" and _is_scalar(k)}
    chosen = {c.loc: c for c in contractions(program) if not c.why_scalar and c.kernel in scalar}
    for r in found:
        if r.rule == "tensor-cores" and r.loc in chosen and r.kernel in scalar:
            why = f"{chosen[r.loc].op} runs on scalar units: tensor cores were not chosen when it was scheduled"
            yield replace(r, sort="missed", message=why, help=NEWER)
        else:
            yield r


NEWER = "the choice of scalar units has to change, not the flow: this vortex gives the contraction to tensor cores"


def _is_scalar(k: StoredKernel) -> bool:
    text = k.texts.get("ptx") or k.texts.get("source") or k.texts.get("tir", "")
    return bool(text) and not any(word in text for word in MATRIX_INSTRUCTIONS)
