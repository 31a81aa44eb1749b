"""What VORTEX_PROBE and VORTEX_TRACE ask for: a file, and behind colons how often a step is looked at, and more."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vortex.errors import ErrorKind, counted

EVERY = 100
"""Steps from one that is looked at to the next, where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A file, anew at each start, and every ``every``-th decode step."""

    file: Path
    every: int = EVERY

    def of_rank(self, rank: int) -> Path:
        """The file of a tensor-parallel rank: of the first one as named, of rank r ``file.r``."""
        return self.file.with_name(f"{self.file.name}.{rank}") if rank else self.file


def not_yet(what: str, variable: str, file: Path, every: int) -> str:
    """Why a file has no step that was looked at, ``what`` it would have been, and how there will be some."""
    when = "every decode step is" if every == 1 else f"one decode step in {every} is"
    more = f"; {variable}='{file}:every {counted(max(1, every // 20), 'step')}' looks at more" if every > 1 else ""
    return f"no step was {what} yet: {when}{more}"


class Said(NamedTuple):
    """What a variable says: the file, how many steps lie between two looks, and what else, by how messages call it."""

    file: Path
    every: int
    more: dict[str, re.Match[str]]


def read_wanted(text: str | None, variable: str, bad: ErrorKind, more: Mapping[str, str]) -> Said | None:
    """What ``text`` says, by default the environment's ``variable``; None where that is empty. ``more`` may stand there
    beside the file and the steps: regular expressions by how messages call them. Raises ``bad`` for what cannot be
    read, and for a file that cannot be written.
    """
    text = os.environ.get(variable, "") if text is None else text
    if not text:
        return None
    name, *rest = text.split(":")
    every, said = EVERY, dict[str, re.Match[str]]()
    for part in map(str.strip, rest):
        if found := re.fullmatch(r"(?:every )?([0-9]{1,9})(?: steps?)?", part):
            every = int(found[1])
            continue
        matches = {what: found for what, regex in more.items() if (found := re.fullmatch(regex, part))}
        if not matches:
            known = "".join(f" nor '{what}'" for what in more)
            raise bad.at(why=f"'{part}' after the file is neither 'every N steps'{known}")
        said |= matches
    if not name or every < 1:
        raise bad.at(why="it names no file" if not name else "a step in every 0 is none")
    file = Path(name)
    try:
        file.open("a", encoding="utf-8").close()
    except OSError as error:
        raise bad.at(why=f"'{name}' cannot be written: {error.strerror}") from None
    return Said(file, every, said)
