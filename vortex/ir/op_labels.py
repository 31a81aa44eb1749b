"""Which ops a line of a lower text computes, as a comment at its end that people and programs read:

    acc[l] = acc[l] + bound_up[r0 * 16 + l] * ...  # %bound_a @ quest.py:23
    for r0 in range(8):  # %reduce_max, %bound @ quest.py:24, quest.py:23

First the values, then the lines of the flow that they come from, by the names of files alone, so that a text does not
depend on where a flow lies. In TensorIR a comment behind the head of a block holds for the lines of the block, but for
those with one of their own. A text that no line of the flow has a part in says in its first line where it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from vortex.ir.core import Op, Value

ORIGIN = "origin: "
"""How a text begins, behind its sign of a comment, that no line of the flow has a part in."""
COMMENT = re.compile(r"(?:#|//) ((?:%\w+, )*%\w+)(?: @ [^\n]*)?$")


def computed_with(o: Op) -> list[Op]:
    """The op, and those whose values are kept nowhere, so that its code computes them on its way."""
    return list(dict.fromkeys([o, *(made for v in o.operands for made in read_through(v))]))


def read_through(v: Value) -> list[Op]:
    """The ops that are computed wherever ``v`` is read, its own first; none where it is kept or loaded."""
    o = v.owner
    if o is None or o.role not in ("elementwise", "view") or o.notes.get("in") in ("tile", "scratch"):
        return []
    return computed_with(o)


def label(ops: Iterable[Op]) -> str:
    """The comment, without its sign, of a line that computes ``ops``; empty where none has a value."""
    valued = [o for o in ops if o.result is not None]
    names = ", ".join(dict.fromkeys(f"%{o.value.name}" for o in valued))
    where = ", ".join(dict.fromkeys(f"{PurePath(o.loc.file).name}:{o.loc.line}" for o in valued if o.loc is not None))
    return f"{names} @ {where}" if where else names


def values_named(line: str) -> tuple[str, ...]:
    """The names of the values in the comment of a line, without their %; none where it has no such comment."""
    found = COMMENT.search(line)
    return tuple(name[1:] for name in found[1].split(", ")) if found else ()


def labels_of_tir(text: str) -> list[str]:
    """The comment, without its sign, that holds for each line of TensorIR text; empty where none does."""
    found: list[str] = []
    blocks: list[tuple[int, str]] = []
    """Indentation and comment of the blocks that a line is in."""
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        while line.strip() and blocks and blocks[-1][0] >= indent:
            blocks.pop()
        own = COMMENT.search(line)
        said = own[0].partition(" ")[2] if own else blocks[-1][1] if blocks else ""
        found.append(said if line.strip() else "")
        code = line[: own.start()] if own else line
        if code.rstrip().endswith(":"):
            blocks.append((indent, said))
    return found


def commented(text: str, labels: Sequence[str]) -> str:
    """C++ text with the comment of each line at its end."""
    lines = zip(text.splitlines(), labels, strict=True)
    return "".join(f"{line}  // {said}\n" if said else f"{line}\n" for line, said in lines)


def origin_of(text: str) -> str:
    """What the first line of TensorIR text says of where all of it comes from; empty where its lines say."""
    first = text.partition("\n")[0]
    return first[2:] if first.startswith(f"# {ORIGIN}") else ""


def uncommented(text: str) -> str:
    """TensorIR or C++ text without these comments."""
    return "".join(f"{COMMENT.sub('', line).rstrip()}\n" for line in text.splitlines())
