"""What the schedule of a kernel may say, for people edit it: its template's knobs, and a few words of its own.

``from`` is where the numbers came from (``db:ID``, ``transfer:ID``, ``model``, ``heuristic`` or ``user``), ``user``
names those that somebody gave beside them, ``serves`` are the buckets of shapes they are for. ``variants`` are
schedules of kernels that stand for this one at other shapes, ``table`` those that a kernel looks up while it runs;
either takes from the schedule around it what it does not say itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from vortex.errors import IR_ATTRIBUTE
from vortex.ir.core import Attr, Function, Module
from vortex.ir.scratch import accesses
from vortex.kinds.buckets import LIMIT
from vortex.schedules.knobs import KnobInfo, Knobs, check_knob, declared, read_knobs
from vortex.schedules.taken_in import taken_in
from vortex.schedules.template import Schedulable, schedulable
from vortex.schedules.traffic import bytes_per_page
from vortex.targets.target import Target

LISTS = ("variants", "table")
WORDS = ("from", "user", "serves", *LISTS)
"""What a schedule may say beside its knobs."""
MOST = 64
"""Schedules in a list."""


def check_program(program: Module, target: Target) -> None:
    """Whether every kernel of a scheduled program can be built as its schedule says.

    Raises:
        VortexError: VX2005 when a schedule is malformed or a kernel says other scratch than its template takes, or that
            it takes in what it cannot, VX2010 for knobs that are unknown, missing or no legal numbers, VX4006 when no
            kernel of the knobs can be launched.
    """
    for f in program.functions.values():
        check_kernel(program, f, target)


def check_kernel(program: Module, f: Function, target: Target) -> None:
    """The same for one kernel."""
    mine = schedulable(program, f, target)
    schedule = check_schedule(f, mine)
    taken = accesses(mine.taken() if mine is not None else ())
    if (said := f.attrs.get("scratch", {})) != taken:
        raise _wrong(f, "scratch", f"{taken or 'none'}, which pass 'schedule' writes,", said)
    able = mine.takes_in(program, f) if mine is not None else None
    if taken_in(program, f) not in (None, able):
        raise _wrong(f, "takes_in", "none" if able is None else f"'{able.name}' or none", f.attrs["takes_in"])
    if mine is None:
        return
    complete(program, f, target, schedule, mine)
    own = without(schedule, WORDS)
    for name in LISTS:
        for i, line in enumerate(schedule.get(name, ())):
            complete(program, f, target, {**own, **line}, mine, f": {name}[{i}]")


def complete(
    program: Module, f: Function, target: Target, schedule: Mapping[str, Attr], mine: Schedulable[Knobs], at: str = ""
) -> Knobs:
    """The knobs of a schedule that says all of them and can be launched; raises as :func:`check_program`."""
    knobs = read_knobs(mine.knobs, schedule, f"kernel @{f.name}: schedule{at}")
    mine.require(program, f, target, knobs)
    return knobs


def without(schedule: Mapping[str, Attr], names: tuple[str, ...]) -> dict[str, Attr]:
    """A schedule less what goes by these names."""
    return {name: value for name, value in schedule.items() if name not in names}


def described(program: Module, f: Function, target: Target) -> dict[str, Attr]:
    """The schedule of a kernel as a manifest has it: with what follows from its knobs and its IR.

    Raises:
        VortexError: VX2010 when a knob is missing or no legal number, VX4006 when no kernel of them can be launched.
    """
    schedule: dict[str, Attr] = dict(f.attrs.get("schedule", {}))
    if (mine := schedulable(program, f, target)) is not None:
        schedule |= mine.facts(program, f, complete(program, f, target, schedule, mine))
    if each := bytes_per_page(program, f):
        schedule["bytes_per_page"] = each
    return schedule


def check_schedule(f: Function, mine: Schedulable[Knobs] | None) -> dict[str, Attr]:
    """The schedule of kernel ``f``, in which knobs of the template ``mine`` may still be missing.

    Raises:
        VortexError: VX2005 when it is malformed, VX2010 for knobs that are unknown or no legal numbers.
    """
    known = declared(mine.knobs) if mine is not None else {}
    schedule = f.attrs.get("schedule", {})
    _check(f, "schedule", schedule, known)
    for name in LISTS:
        lines = schedule.get(name, ())
        if not isinstance(lines, tuple) or len(lines) > MOST:
            raise _wrong(f, f"schedule: {name}", f"a list of at most {MOST} schedules", lines)
        if name == "table" and lines and not (mine is not None and mine.looked_up):
            raise _wrong(f, "schedule: table", "none (this kernel looks nothing up) or 'variants'", lines)
        for i, line in enumerate(lines):
            where = f"schedule: {name}[{i}]"
            _check(f, where, line, known)
            if "serves" not in line or any(x in line for x in LISTS):
                raise _wrong(f, where, "'serves' and no list of its own", line)
            if name == "table" and mine is not None:
                _check_line(f, where, schedule, line, mine)
    return dict(schedule)


def _check_line(
    f: Function, where: str, schedule: Mapping[str, Attr], line: Mapping[str, Attr], mine: Schedulable[Knobs]
) -> None:
    """A line of a table cannot change what the kernel is built with."""
    for name, value in without(line, WORDS).items():
        if name not in mine.looked_up and schedule.get(name, value) != value:
            needed = f"{schedule[name]!r} as in the schedule, for the kernel is built with it"
            raise _wrong(f, f"{where}: {name}", needed, value)


def _check(f: Function, where: str, schedule: Attr, known: Mapping[str, KnobInfo]) -> None:
    if not isinstance(schedule, dict):
        raise _wrong(f, where, "numbers by name", schedule)
    for name, value in schedule.items():
        if name in LISTS:
            continue
        if name == "from":
            if not isinstance(value, str):
                raise _wrong(f, f"{where}: from", "a string", value)
        elif name == "user":
            if not isinstance(value, tuple) or not all(isinstance(x, str) and x in schedule for x in value):
                raise _wrong(f, f"{where}: user", "a list of knobs that it says", value)
        elif name == "serves":
            if not isinstance(value, tuple) or not all(map(_is_bucket, value)):
                raise _wrong(f, f"{where}: serves", "a list of [rows, columns, kept pages]", value)
        else:
            check_knob(f"kernel @{f.name}: {where}", known, name, value)


def _is_bucket(value: Attr) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(isinstance(n, int) and 0 <= n <= LIMIT for n in value)


def _wrong(f: Function, where: str, needed: str, got: Attr) -> Exception:
    return IR_ATTRIBUTE.at(op=f"kernel @{f.name}", why=f"{where} is {ascii(got)[:60]}; {needed} is needed")
