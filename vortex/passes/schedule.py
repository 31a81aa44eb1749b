"""The choices that depend on the target, and where each came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vortex.errors import PASS_OPTION, nearest
from vortex.ir import scratch
from vortex.ir.core import Attr, Function, Module
from vortex.passes.manager import Choice, Pass, PassContext, register
from vortex.schedules.check import WORDS, check_kernel, check_schedule, complete, without
from vortex.schedules.knobs import Knobs, check_knob, declared
from vortex.schedules.template import Schedulable, schedulable
from vortex.targets.gpu import UNMEASURED
from vortex.targets.target import TARGETS, Target


@register("schedule", stage="page", tag="exact", version=4, needed=True)
@dataclass(frozen=True, slots=True)
class Schedule(Pass):
    """Choose every knob of each kernel for the target and write it, with its origin, into the IR.

    What a template leaves open is in ``vortex.schedules``; the emitters read the knobs and choose nothing. The option
    ``knobs`` gives some by hand: ``schedule{knobs=attend.warps:2+threads:128}`` is for ``attend`` alone, and for every
    kernel that has ``threads``. So does a schedule that a kernel has already. Defaults are then chosen around what was
    given, which the word ``user`` names.

    Otherwise what a tuning database knows goes before the defaults (``from = "db:ID"``, the id of the record; for a
    machine that nobody has measured ``"transfer:ID"``, the record of another). Defaults are ``"heuristic"``, on a
    machine that nobody has measured from a model of it (``"model"``). Where one choice does not do for all shapes,
    ``variants`` are schedules for other ones: each becomes a kernel of its own, and ``serves`` says for which buckets
    (rows, columns, kept pages) each is. ``plan``, which shapes the work of the others, has one kernel with a ``table``
    that it looks into each step.

        kernel @select {kind = "select", domain = "rows"}
          ->
        kernel @select {.., schedule = {lanes = 16, unroll = 8, prefetch = 8, from = "heuristic"}}

    Scratch that kernels of the target take for work that they share, such as work lists, is declared, and each kernel
    says whether it reads, writes or updates it:

        buffer @scratch.work : i32[] {layout = "step", role = "scratch", shape = [2, "work_list"]}
        kernel @select {.., scratch = {work = "reads", arrivals = "updates"}}

    Where launches of ``select`` can do what ``append`` does for one new token of a request, it says ``takes_in``, and
    such steps have no launch of ``append``:

        kernel @select {kind = "select", domain = "rows", takes_in = "append", ..}
    """

    knobs: str = ""

    def run(self, module: Module, ctx: PassContext) -> Module:
        program = Module("page", module.name, dict(module.attrs), dict(module.decls), dict(module.functions))
        target = ctx.target or TARGETS["cpu"]
        program.attrs["target"] = target.name
        options = _options(self.knobs, program, target)
        scratch.clear(program)
        for f in program.functions.values():
            mine = schedulable(program, f, target)
            _take_in(program, f, mine)
            before = check_schedule(f, mine)
            if mine is None:
                continue
            given = {**without(before, WORDS), **options.get(f.name, {})}
            found = ctx.choose(program, f, target) if ctx.choose is not None and not given else None
            if found is not None:
                f.attrs["schedule"] = _looked_up(found, mine)
            elif f.name in options or given.keys() != declared(mine.knobs).keys():
                f.attrs["schedule"] = _chosen(program, f, target, mine, before, given)
            scratch.declare(program, f, mine.taken())
            check_kernel(program, f, target)
        return program


def _take_in(program: Module, f: Function, mine: Schedulable[Knobs] | None) -> None:
    """Say whose work launches of a kernel do as well: all that they can do."""
    taken = mine.takes_in(program, f) if mine is not None else None
    if taken is None:
        f.attrs.pop("takes_in", None)
    else:
        f.attrs["takes_in"] = taken.name


def _looked_up(found: Choice, mine: Schedulable[Knobs]) -> dict[str, Attr]:
    """What a database chose."""
    schedule = found.attrs
    if found.others and mine.looked_up:
        del schedule["serves"]
        schedule["table"] = tuple(v.attrs for v in (found, *found.others))
    elif found.others:
        schedule["variants"] = tuple(v.attrs for v in found.others)
    return schedule


def _chosen(
    program: Module,
    f: Function,
    target: Target,
    mine: Schedulable[Knobs],
    before: Mapping[str, Attr],
    given: Mapping[str, Attr],
) -> dict[str, Attr]:
    """What was given, and defaults around it."""
    known = declared(mine.knobs)
    asked = {name: check_knob(f"kernel @{f.name}", known, name, value) for name, value in given.items()}
    made: dict[str, Attr] = {**mine.choose(program, f, target, asked).attrs()}
    complete(program, f, target, made, mine)
    words = {name: before[name] for name in WORDS if name in before and name not in ("from", "user")}
    if asked.keys() == known.keys():
        return {**made, "from": "user", **words}
    made["from"] = "model" if target.name in UNMEASURED else "heuristic"
    return {**made, **({"user": tuple(asked)} if asked else {}), **words}


def _options(text: str, program: Module, target: Target) -> dict[str, dict[str, int]]:
    """The knobs that the option gives, by kernel.

    Raises:
        VortexError: VX3002 when the text does not parse or no kernel has the knob, VX2010 for a number that is not
            legal.
    """
    found: dict[str, dict[str, int]] = {}
    every = {
        f.name: (str(f.attrs["kind"]), declared(mine.knobs))
        for f in program.functions.values()
        if (mine := schedulable(program, f, target)) is not None
    }
    for part in filter(None, text.split("+")):
        name, _, value = part.partition(":")
        kind, dot, knob = name.rpartition(".")
        if not value.isascii() or not value.isdigit():
            why = f"'{part}' gives no number; write knobs=attend.warps:2+threads:128"
            raise PASS_OPTION.at(name="schedule", why=why)
        meant = {f: known for f, (k, known) in every.items() if not dot or k == kind}
        having = {f: known for f, known in meant.items() if knob in known}
        if not having:
            names = sorted({n for known in meant.values() for n in known})
            what = f"no {kind or 'kernel'} on {target.name} has a knob '{knob}'"
            raise PASS_OPTION.at(name="schedule", why=f"{what}{nearest(knob, names)}")
        for f, known in having.items():
            found.setdefault(f, {})[knob] = check_knob(f"kernel @{f}", known, knob, int(value))
    return found
