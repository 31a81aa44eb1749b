"""What would be slow about a flow on a GPU, and why: told from its page program alone, with the line of the flow."""

from __future__ import annotations

from collections.abc import Iterator

from vortex.ir.core import Function, Module, Op
from vortex.ir.dialects import page
from vortex.ir.staging import folds, loads_by_loop, origin_of, stage
from vortex.remarks.contractions import contractions
from vortex.remarks.remark import Remark
from vortex.schedules.arithmetic import Arithmetic, field_reads
from vortex.schedules.taken_in import taken_in, takes_in_tokens
from vortex.targets.gpu import Machine, machine_of
from vortex.targets.roofline import scalar_rate

DENSE_SHARE = 0.4
"""Of the bytes of dense attention, from which on a selection is hardly worth its work."""


def of_program(program: Module) -> list[Remark]:
    """What is to say of the kernels of a page program for a GPU; of one for a CPU, what is so there too."""
    made = [c.remark for c in contractions(program)] if _for_gpu(program) else []
    for f in program.functions.values():
        if f.attrs["kind"] == "select":
            made += _arithmetic(program, f) if _for_gpu(program) else []
            made += _read_again(program, f)
    kernels = {f.name: f.attrs["kind"] for f in program.functions.values() if f.attrs["kind"] != "plan"}
    if len(kernels) > len(set(kernels.values())):
        launched = [n for n, kind in kernels.items() if kind != "append" or not takes_in_tokens(program)]
        why = f"a layer takes {len(launched)} launches: {', '.join(launched)}"
        help = "keep fewer numbers of each page between sweeps: reduce before a softmax"
        made.append(Remark("launches", "missed", why, help))
    made += _taken_in(program)
    return made


def _taken_in(program: Module) -> Iterator[Remark]:
    """Launches of one kernel that do the work of another."""
    for f in program.functions.values():
        if (appended := taken_in(program, f)) is not None:
            why = (
                f"in steps of one token a request {f.name} does what {appended.name} would do, which is launched for "
                "prompts alone"
            )
            yield Remark("launches", "passed", why, kernel=f.name)


def near_dense(read: float, dense: float) -> list[Remark]:
    """What is to say of the bytes that all ``select`` kernels read of a row, beside those of its K and V."""
    if not dense or read < DENSE_SHARE * dense:
        return []
    why = f"select reads {read / dense:.0%} of what dense attention reads"
    help = "store fields in a narrower type, or score a shortlist of the pages"
    return [Remark("near-dense", "missed", why, help, kernel="select")]


def _for_gpu(program: Module) -> bool:
    return program.attrs.get("target", "") != "cpu"


def beside_memory(work: Arithmetic, machine: Machine) -> float:
    """How many times as long as the bytes of a page its scalar instructions take; 0 where either are none."""
    if not work.size or not work.counted:
        return 0.0
    return work.total / scalar_rate(machine) * machine.copy_bandwidth / work.size


def _arithmetic(program: Module, f: Function) -> Iterator[Remark]:
    work = Arithmetic.of(program, f).of_candidates
    times = beside_memory(work, machine_of(program))
    if times > 1:
        worst = max(work.counted, key=lambda o: work.counted[o])
        why = (
            f"about {work.total} scalar instructions a page take {times:.1f} times as long as its {work.size} bytes: "
            f"{work.counted[worst]} of them in {_named(worst)}, {work.conversions} to convert what is stored"
        )
        help = "turn it into a contraction with the field, or fold an axis earlier"
        yield Remark("arithmetic", "missed", why, help, worst.loc, f.name)


def _read_again(program: Module, f: Function) -> Iterator[Remark]:
    for o, sweeps in field_reads(program, f):
        if len(sweeps) > 1:
            raw = not page.is_summary(program, o)
            what = f"cache.{o.buffer}, the rows of the pool," if raw else f"field {o.buffer}"
            late, waits = _late_reader(f, o)
            # the line of what reads it again: a load has none
            why = f"{what} is read {len(sweeps)} times: {_named(late)} needs it again{waits}"
            way = "compute what the later sweep needs before the statistic over pages, or store it as a field"
            if raw:
                way = "keep a smaller summary of the rows as a field, or read them at the pages of a shortlist"
            yield Remark("read-again", "missed", why, way, late.loc, f.name)


def _late_reader(f: Function, load: Op) -> tuple[Op, str]:
    """The first op of the last sweep that reads what was loaded, and what that sweep waits for, in words."""
    staging = stage(f)
    last = max(loads_by_loop(f, staging)[load])
    late = next(
        o for o in f.ops if staging.loop[o] == last and any(origin_of(v).owner is load for v in o.operands)
    )  # fmt: skip
    for o in reversed(_before(late)):
        if o.crosses_pages() and folds(o):
            return late, f" after {_named(o)} of all pages, which the sweep before ends with"
    return late, " in a sweep of its own"


def _before(o: Op) -> list[Op]:
    """All ops that an op's operands come from, in no particular order but the nearest last."""
    found: dict[Op, None] = {}
    waiting = [v.owner for v in o.operands]
    while waiting:
        owner = waiting.pop(0)
        if owner is not None and owner not in found:
            found[owner] = None
            waiting += [v.owner for v in owner.operands]
    return list(found)[::-1]


def _named(o: Op) -> str:
    """An op by its name in a flow."""
    return o.name.removeprefix("flow.")
