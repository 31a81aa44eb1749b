"""The flow's own code as text, kept beside the IR whose locations point into it."""

from __future__ import annotations

import linecache
import re
from dataclasses import dataclass
from pathlib import PurePath

from vortex.ir.core import Module

LIMIT = 1 << 20
"""Bytes of a file that is kept; a larger one is no flow that a person wrote."""


@dataclass(frozen=True, slots=True)
class FlowFile:
    """One file that a flow was traced from."""

    path: str
    """As locations have it."""
    name: str
    """Of the copy in a dump or an artifact."""
    text: str


def flow_files(module: Module) -> tuple[FlowFile, ...]:
    """The files that the locations of a module just traced name, in order; a file that cannot be read is left out.

    The text is what locations were counted in, which an editor may have changed on disk since.
    """
    every = [f.loc for f in module.functions.values()] + [o.loc for f in module.functions.values() for o in f.ops]
    found: list[FlowFile] = []
    for path in dict.fromkeys(loc.file for loc in every if loc is not None):
        text = "".join(linecache.getlines(path))
        if text and len(text.encode()) <= LIMIT:
            found.append(FlowFile(path, _free(path, {f.name for f in found}), text))
    return tuple(found)


def _free(path: str, taken: set[str]) -> str:
    """The file's own name, or ``name-2.py`` and so on; a cell of a notebook gets one that can be a file's."""
    stem = re.sub(r"[^\w.-]+", "-", PurePath(path).name.removesuffix(".py")).strip("-.") or "flow"
    number, name = 1, f"{stem}.py"
    while name in taken:
        number += 1
        name = f"{stem}-{number}.py"
    return name
