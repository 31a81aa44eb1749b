"""Which line of a flow each line of a text came from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vortex.errors import Loc
from vortex.ir.core import Op, Value
from vortex.report.model import Place

LOCATION = re.compile(r'\s+@ ("(?:[^"\\]|\\.)*"):(\d{1,9}):(\d{1,9})(?:-(\d{1,9}))?(?: in ([\w.]+))?\s*$')
OP = re.compile(r"^\s+(?:%([\w.]+) = )?(\w+\.\w+)\(([^)]*)\)")
OPENS = re.compile(r"^\s+(?:func|kernel) @")


@dataclass
class Places:
    """The places of one compilation, each once, and the files that they are in."""

    files: list[str] = field(default_factory=list)
    found: dict[Place, int] = field(default_factory=dict)

    def of(self, loc: Loc | None) -> int:
        """The number of a location; -1 for none."""
        if loc is None:
            return -1
        if loc.file not in self.files:
            self.files.append(loc.file)
        place = Place(self.files.index(loc.file), loc.line, loc.col, loc.end, loc.call)
        return self.found.setdefault(place, len(self.found))

    def all_of(self, *locs: Loc | None) -> tuple[int, ...]:
        """The numbers of several, each once."""
        return tuple(dict.fromkeys(n for loc in locs if (n := self.of(loc)) >= 0))


def loc_of(o: Op, users: Mapping[Value, Sequence[Op]]) -> Loc | None:
    """Where an op comes from; one without a location is there for what it stores, or for what takes its result."""
    stored = (v.owner.loc for v in o.operands if v.owner is not None)
    taken = (u.loc for u in (users.get(o.result, ()) if o.result is not None else ()))
    return o.loc or next(filter(None, (*stored, *taken)), None)


def split_ir(text: str, places: Places) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """The lines of IR without their locations, and the places of each, one at most.

    An op without a location takes that of the value that it stores, or of the first op that takes what it loads.
    """
    lines, found = [], []
    for line in text.splitlines():
        at = LOCATION.search(line)
        lines.append(line[: at.start()].rstrip() if at else line)
        found.append(places.of(_loc(at)) if at else -1)
    return tuple(lines), tuple((n,) if n >= 0 else () for n in _inherited(lines, found))


def _loc(at: re.Match[str]) -> Loc | None:
    try:
        file = json.loads(at[1])
    except ValueError:  # an escape that JSON does not have: IR edited by hand
        return None
    return Loc(str(file), int(at[2]), int(at[3]), int(at[4] or 0), at[5] or "")


def _inherited(lines: Sequence[str], found: list[int]) -> list[int]:
    """The places, those of stores and loads filled in from the ops beside them."""
    made: dict[str, int] = {}
    waiting: dict[str, int] = {}  # a value without a place, and the line that makes it
    for n, line in enumerate(lines):
        if OPENS.match(line):
            made, waiting = {}, {}
        op = OP.match(line)
        if op is None:
            continue
        operands = re.findall(r"%([\w.]+)", op[3])
        if found[n] < 0:
            found[n] = next((made[v] for v in operands if made.get(v, -1) >= 0), -1)
        for v in operands:
            if found[n] >= 0 and v in waiting:
                found[waiting.pop(v)] = found[n]
        if op[1]:
            made[op[1]] = found[n]
            if found[n] < 0:
                waiting[op[1]] = n
    return found


def op_counts(lines: Sequence[str]) -> dict[str, int]:
    """How many ops of each name stand in IR."""
    counts: dict[str, int] = {}
    for line in lines:
        if op := OP.match(line):
            counts[op[2]] = counts.get(op[2], 0) + 1
    return counts
