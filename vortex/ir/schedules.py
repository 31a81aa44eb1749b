"""What the schedule of a kernel may say, for people edit it: numbers by knob, and a few words of its own.

``from`` is where the numbers came from, ``serves`` the buckets of shapes they are for. ``variants`` are schedules of
kernels that stand for this one at other shapes, ``table`` those that a kernel looks up while it runs.
"""

from __future__ import annotations

from vortex.errors import IR_ATTRIBUTE
from vortex.ir.core import Attr, Function
from vortex.kinds.buckets import LIMIT

LISTS = ("variants", "table")
MOST = 64
"""Schedules in a list."""


def check_schedule(f: Function) -> None:
    """VX2005 when the schedule of kernel ``f`` is none."""
    schedule = f.attrs.get("schedule", {})
    _check(f, "schedule", schedule)
    for name in LISTS:
        lines = schedule.get(name, ())
        if not isinstance(lines, tuple) or len(lines) > MOST:
            raise _wrong(f, f"schedule: {name}", f"a list of at most {MOST} schedules", lines)
        for i, line in enumerate(lines):
            where = f"schedule: {name}[{i}]"
            _check(f, where, line)
            if "serves" not in line or any(x in line for x in LISTS):
                raise _wrong(f, where, "'serves' and no list of its own", line)


def _check(f: Function, where: str, schedule: Attr) -> None:
    if not isinstance(schedule, dict):
        raise _wrong(f, where, "numbers by name", schedule)
    for name, value in schedule.items():
        if name in LISTS:
            continue
        if name == "from":
            if not isinstance(value, str):
                raise _wrong(f, f"{where}: from", "a string", value)
        elif name == "serves":
            if not isinstance(value, tuple) or not all(map(_is_bucket, value)):
                raise _wrong(f, f"{where}: serves", "a list of [rows, columns, kept pages]", value)
        elif isinstance(value, str | tuple | dict) or not isinstance(value, int | float):
            raise _wrong(f, f"{where}: {name}", "a number", value)


def _is_bucket(value: Attr) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(isinstance(n, int) and 0 <= n <= LIMIT for n in value)


def _wrong(f: Function, where: str, needed: str, got: Attr) -> Exception:
    return IR_ATTRIBUTE.at(op=f"kernel @{f.name}", why=f"{where} is {ascii(got)[:60]}; {needed} is needed")
