"""Which knobs two schedules of a kernel set differently, and who chose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from vortex.ir.core import Attr
from vortex.ir.printer import attr

LINES = {"variants": "variant", "table": "line"}
"""The lists of schedules in a schedule, with what each of their entries is."""


def knob_changes(
    a: Mapping[str, Attr], b: Mapping[str, Attr], prefix: str = ""
) -> Iterator[tuple[Literal["-", "+", "~"], str, str, str, str]]:
    """Sign, name, numbers and origins of each knob that differs: ``("~", "warps", "4", "8", "heuristic -> db:79c2")``.

    Those of variants are named ``variant 1: warps``. Where the origins alone differ, ``from`` stands for a knob.
    """
    names = [n for n in dict.fromkeys((*a, *b)) if n not in ("from", "user", *LINES)]
    differ = [n for n in names if n not in a or n not in b or attr(a[n]) != attr(b[n])]
    for n in differ:
        sign: Literal["-", "+", "~"] = "+" if n not in a else "-" if n not in b else "~"
        before, after = (attr(x[n]) if n in x else "" for x in (a, b))
        yield sign, prefix + n, before, after, _origins(a, b, n)
    if not differ and a and b and a.get("from") != b.get("from"):
        yield "~", f"{prefix}from", str(a.get("from", "")), str(b.get("from", "")), ""
    for listed, each in LINES.items():
        left, right = _entries(a, listed), _entries(b, listed)
        for i in range(max(len(left), len(right))):
            at = f"{prefix}{each} {i + 1}"
            if i < len(left) and i < len(right):
                yield from knob_changes(left[i], right[i], f"{at}: ")
            elif i < len(left):
                yield "-", at, _line(left[i]), "", str(left[i].get("from", ""))
            else:
                yield "+", at, "", _line(right[i]), str(right[i].get("from", ""))


def _origins(a: Mapping[str, Attr], b: Mapping[str, Attr], knob: str) -> str:
    """Who chose a knob on either side: who chose the schedule, unless somebody gave the knob by hand."""
    before, after = ("user" if knob in x.get("user", ()) else str(x.get("from", "")) for x in (a, b))
    return f"{before} -> {after}" if before and after and before != after else before or after


def _entries(schedule: Mapping[str, Attr], name: str) -> list[Mapping[str, Attr]]:
    found = schedule.get(name, ())
    return [x for x in found if isinstance(x, Mapping)] if isinstance(found, tuple | list) else []


def _line(schedule: Mapping[str, Attr]) -> str:
    """The knobs of one schedule in one line."""
    return " ".join(f"{k}={attr(v)}" for k, v in schedule.items() if k != "from")
