"""Files of JSON, a line each, that one process writes while another may read: probes and page traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from vortex.errors import NO_SUCH_FILE, ErrorKind
from vortex.untrusted_json import JsonError, Partial, parse, read

T = TypeVar("T")


def read_json_lines(path: Path, mark: str, version: int, head: type[T], bad: ErrorKind) -> tuple[T, list[str]]:
    """The first line, which says ``version`` under the key ``mark``, as a ``head``, and the other lines as they stand.

    Who writes the file may have written half of the last line, which is left out.

    Raises:
        VortexError: VX7002 for a file that cannot be read; ``bad`` for one that is empty or begins otherwise.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not text"
        raise NO_SUCH_FILE.at(path=str(path), why=f"cannot be read: {why}") from None
    # not splitlines: a request may be called by a name that holds a separator of another kind
    lines = text.split("\n")[:-1]
    if not lines:
        raise bad.at(path=str(path), why="it is empty")
    try:
        first = parse(lines[0])
        if not isinstance(first, dict) or first.get(mark) != version:
            raise bad.at(path=str(path), why=f'its first line does not say "{mark}": {version}')
        made: T = read(Annotated[head, Partial(more=True)], first)
    except JsonError as error:
        raise bad.at(path=str(path), why=f"line 1: {error}") from None
    return made, lines[1:]
