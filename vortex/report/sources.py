"""The files of a flow, read again from where the compilation found them."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path

from vortex.flow.flow import METHODS
from vortex.report.model import Source

LARGEST = 1 << 20
"""Bytes of a file that is shown."""


def read_source(file: str, digest: str, lines: Iterable[int]) -> Source:
    """The file as far as it still is what was compiled.

    ``digest`` is the module's attribute ``source``, a hash over the methods of the flow. A file that holds a flow of
    that hash is shown, and so is a file of helpers, without a flow, if it has the ``lines`` that are named of it.
    """
    path = Path(file)
    try:
        if path.stat().st_size > LARGEST:
            return Source(path.name, (), "the file is too large to be shown")
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError):
        return Source(path.name, (), "the file is no longer there, or cannot be read")
    hashes = list(_flows(text))
    if hashes and digest not in hashes:
        return Source(path.name, (), "the file was changed after the compilation")
    shown = tuple(text.splitlines())
    if max(lines, default=0) > len(shown):
        return Source(path.name, (), "the file is shorter than when it was compiled")
    return Source(path.name, shown, "")


def _flows(text: str) -> Iterable[str]:
    """The hash of each class in ``text`` that has the methods of a flow, as tracing makes it."""
    try:
        classes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef)]
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = text.splitlines(keepends=True)
    for c in classes:
        methods = {f.name: f for f in c.body if isinstance(f, ast.FunctionDef)}
        if methods.keys() >= set(METHODS):
            firsts = [min([methods[m].lineno, *(d.lineno for d in methods[m].decorator_list)]) for m in METHODS]
            whole = "".join("".join(inspect.getblock(lines[first - 1 :])) for first in firsts)
            yield hashlib.sha256(whole.encode()).hexdigest()
