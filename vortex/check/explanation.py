"""All remarks on what was compiled: from its page IR, its schedules and what ptxas reported of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from vortex.budget import Budget
from vortex.check.bounds import counted_tokens
from vortex.check.step_bytes import count_step, dense_bytes
from vortex.compilation.stored import Stored
from vortex.driver import Resources, compile_flow, start_resources
from vortex.errors import BAD_OPTION, VortexError, nearest
from vortex.flow.flow import vFlow
from vortex.flow.trace import trace
from vortex.ir.core import Function, Module
from vortex.ir.parser import parse_module
from vortex.passes.manager import Choose
from vortex.remarks.decisions import NotTaken, fusion_of_flow, of_knobs
from vortex.remarks.kernels import of_cluster, of_kernel
from vortex.remarks.program import near_dense, of_program
from vortex.remarks.remark import RULES, Remark
from vortex.schedules.check import described
from vortex.spec import Spec
from vortex.targets.gpu import MACHINES
from vortex.targets.target import TARGETS

TOKENS, BUDGET = 32768, Budget(27)
"""Of the row whose bytes are set against those of dense attention."""
OWN_KERNELS = ("select", "append")
"""Kinds of kernels that a flow's own lines are in; the others are the same for all flows."""

WhyNot = Callable[[Module, Function, str], NotTaken]
"""What the databases say of a kernel of a program on a target that has its knobs from none."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What there is to say of a flow's kernels on one target."""

    flow: str
    target: str
    kernels: tuple[str, ...]
    remarks: tuple[Remark, ...]
    no_resources: str = ""
    """Why nothing is said of registers, spills and limiters; empty where it is."""

    def of(self, kernel: str) -> Explanation:
        """What is said of one kernel.

        Raises:
            VortexError: VX7001 when there is no kernel of that name.
        """
        if kernel not in self.kernels:
            hint = nearest(kernel, self.kernels).lstrip(", ") or f"one of {', '.join(self.kernels)}"
            raise BAD_OPTION.at(option="--kernel", why=f"'{kernel}' is no kernel of {self.flow}", hint=hint)
        base = kernel.partition("_v")[0]
        mine = tuple(r for r in self.remarks if r.kernel in ("", kernel, base))
        return Explanation(self.flow, self.target, (kernel,), mine, self.no_resources)

    def as_json(self) -> dict[str, object]:
        """Numbers as numbers; the schema is in docs/explain.md."""
        return {
            "flow": self.flow,
            "target": self.target,
            "kernels": self.kernels,
            "remarks": [_json(r) for r in self.remarks],
            "no_resources": self.no_resources,
        }


@dataclass(frozen=True, slots=True)
class _Kernel:
    """What a manifest says of a kernel."""

    name: str
    schedule: Mapping[str, object]
    resources: Mapping[str, object]


def _json(r: Remark) -> dict[str, object]:
    loc = r.loc
    made = {k: v for k, v in asdict(r).items() if k != "loc"}
    return {**made, "file": loc.file if loc else "", "line": loc.line if loc else 0}


def explain_stored(stored: Stored, target: str, why_not: WhyNot) -> Explanation:
    """Of a dump or an artifact, for a target that it has.

    Raises:
        VortexError: VX7001 when it was not compiled for the target.
    """
    if target not in stored.programs:
        raise BAD_OPTION.at(
            option="--target",
            why=f"'{stored.path}' has nothing for {target}",
            hint=f"one of {', '.join(stored.programs)}",
        )
    kernels = [_Kernel(k.name, k.schedule, k.resources) for k in stored.kernels if k.target == target]
    flow = parse_module(stored.flow, str(stored.path)) if stored.flow else None
    compiled = target not in MACHINES or any(k.resources for k in kernels)
    return Explanation(
        stored.name,
        target,
        tuple(k.name for k in kernels),
        _sorted(_remarks(flow, _passes(stored, target), stored.programs[target], target, kernels, why_not)),
        "" if compiled else "its kernels were not compiled",
    )


def explain_flow(
    flow: type[vFlow] | vFlow, spec: Spec, target: str, why_not: WhyNot, choose: Choose | None = None
) -> Explanation:
    """Of a flow as it would be compiled, by what ``choose`` says of its kernels or by their one default; nvcc says what
    the flow's own take of a GPU.

    Raises:
        VortexError: whatever the flow does wrong.
    """
    module = trace(flow, spec)
    lowered = compile_flow(module, targets=[TARGETS[target]], to="tir", choose=choose).lowered[0]
    found: Resources = {}
    why = ""
    if target in MACHINES:
        try:
            found = start_resources(lowered, OWN_KERNELS)()
        except VortexError as e:
            why = e.message
    kernels = [_Kernel(n, k.schedule, found.get(n, {})) for n, k in lowered.kernels.items()]
    made = _remarks(module, "", lowered.program, target, kernels, why_not)
    return Explanation(module.name, target, tuple(lowered.kernels), _sorted(made), why)


def _sorted(remarks: Iterable[Remark]) -> tuple[Remark, ...]:
    """Each once, in the order of the rules."""
    order = list(RULES)
    return tuple(sorted(dict.fromkeys(remarks), key=lambda r: order.index(r.rule)))


def _remarks(
    flow: Module | None,
    passes: str,
    program: Module,
    target: str,
    kernels: Iterable[_Kernel],
    why_not: WhyNot,
) -> Iterator[Remark]:
    yield from of_program(program)
    if flow is not None:
        yield from fusion_of_flow(flow, passes)
        if target in MACHINES:
            yield from _near_dense(flow, program)
    for k in kernels:
        f = program.functions.get(str(k.schedule.get("variant_of", k.name)))
        if f is None:
            continue  # of an artifact that somebody edited
        defaults = k.schedule.get("from") in ("model", "heuristic")
        yield from of_knobs(k.name, k.schedule, why_not(program, f, target) if defaults else NotTaken())
        if target in MACHINES:
            # an artifact may be older than what is known to follow from a schedule
            schedule = {**described(program, f, TARGETS[target]), **k.schedule}
            yield from of_cluster(program, f, k.name, schedule)
            yield from of_kernel(program, f, k.name, schedule, k.resources)


def _near_dense(flow: Module, program: Module) -> list[Remark]:
    spec = Spec.of_attrs(program.attrs)
    if not (tokens := counted_tokens(flow, spec, TOKENS)):
        return []
    read = sum(s.read for s in count_step(program, spec, tokens, BUDGET) if s.kernel.startswith("select"))
    return near_dense(read, dense_bytes(program, spec, tokens))


def _passes(stored: Stored, target: str) -> str:
    """The pipeline that a compilation ran, as far as it is known; empty for the default one."""
    if stored.steps:
        return ",".join(s.name for s in stored.steps[1:] if s.target in ("", target))
    words = list(stored.argv)
    given = [w.partition("=")[2] for w in words if w.startswith("--passes=")]
    given += [words[i + 1] for i, w in enumerate(words[:-1]) if w == "--passes"]
    return given[-1] if given else ""
