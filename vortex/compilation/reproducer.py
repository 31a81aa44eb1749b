"""What vortex writes when it fails itself, ``vortex-crash-HASH``, read for people. In the folder:

    report.json     the command's arguments, and versions
    traceback.txt
    inputs/         the files that the command names
    dump/           what the compilation had dumped by then, where it did
    repro.sh        the command again

Inputs may be any files; those that are no text are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from vortex.compilation.resume import read_text
from vortex.errors import NO_SUCH_FILE
from vortex.untrusted_json import JsonError, Partial, Pattern, parse, read

REPORT, TRACEBACK, INPUTS, DUMP = "report.json", "traceback.txt", "inputs", "dump"
DUMP_OF = "vortex_dump"
"""Attribute of an exception that ended a compilation: the folder of its dump."""
STAGES = {".flow": "flow", ".page": "page"}
"""Of inputs that are IR."""

_Word = Annotated[str, Pattern(r"(?s).*", "text")]


@dataclass(frozen=True, slots=True)
class _Report:
    argv: tuple[_Word, ...]
    versions: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reproducer:
    """A failure as it lies on disk."""

    path: Path
    argv: tuple[str, ...]
    versions: Mapping[str, str]
    traceback: str
    inputs: Mapping[str, str]
    """Texts by the names of their files."""

    @property
    def error(self) -> str:
        """What it ended with."""
        lines = self.traceback.strip().splitlines()
        return f"internal error: {lines[-1]}" if lines else "internal error"

    @property
    def dump(self) -> Path | None:
        """The folder of the compilation's dump."""
        return self.path / DUMP if (self.path / DUMP).is_dir() else None


def is_reproducer(path: Path) -> bool:
    """Whether a folder looks like one."""
    return (path / REPORT).is_file() and (path / TRACEBACK).is_file()


def read_reproducer(path: Path) -> Reproducer:
    """What is in the folder.

    Raises:
        VortexError: VX7002 when it is damaged.
    """
    try:
        found: _Report = read(Annotated[_Report, Partial(more=True)], parse((path / REPORT).read_bytes()))
    except (OSError, JsonError) as e:
        raise NO_SUCH_FILE.at(path=str(path / REPORT), why=f"is damaged: {e}") from None
    inputs = {f.name: text for f in sorted((path / INPUTS).glob("*")) if (text := _text_of(f)) is not None}
    versions = {name: v for name, v in found.versions.items() if v}
    return Reproducer(path, ("vortex", *found.argv), versions, read_text(str(path / TRACEBACK)), inputs)


def _text_of(file: Path) -> str | None:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
