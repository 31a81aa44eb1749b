"""Tables and progress for people, JSON for programs."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vortex.budget import natural
from vortex.errors import VortexError, writing
from vortex.install.whole_files import replace_file


def say(text: str) -> None:
    """A message, to stderr: stdout is for data."""
    print(text, file=sys.stderr, flush=True)


def write_text(text: str, out: Path) -> None:
    """Replace the file ``out`` whole, or leave it as it was; a device or pipe is written to.

    Raises:
        VortexError: VX7004 when the disk refuses.
    """
    replace_file(out, text.encode(errors="surrogateescape"))  # names of files may be any bytes


def check_out(out: Path | None) -> None:
    """Refuse a file that cannot be written, before what takes minutes is begun for it.

    Raises:
        VortexError: VX7004 for a folder, for a file in none, and where nothing may be written.
    """
    if out is None:
        return
    with writing(out):
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        where = out if out.exists() else out.absolute().parent
        where.stat()
        if not os.access(where, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def written_first(write: Callable[[], None] | None) -> Iterator[None]:
    """``write`` a file, if any, before what is printed inside, where a pipe may end (``| head``). What the disk refuses
    is raised behind it, so that what was measured is shown all the same.
    """
    refused: VortexError | None = None
    if write is not None:
        try:
            write()
        except VortexError as error:
            refused = error
    yield
    if refused is not None:
        raise refused


def emit_json(value: object) -> None:
    """``value`` as JSON on stdout, with null for infinities and what is no number: JSON has neither."""
    print(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def _finite(value: object) -> object:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(v) for key, v in value.items()}
        case list() | tuple():
            return [_finite(v) for v in value]
    return value


Shown = Callable[[Any], str]


def listing(
    rows: Sequence[Mapping[str, object]], as_json: bool, title: str = "", shown: Mapping[str, Shown] | None = None
) -> None:
    """Rows with the same keys, as a table or as JSON.

    JSON has the values as they are; ``shown`` says how a table has those of a column, where that is not plainly.
    """
    if as_json:
        emit_json(rows)
    elif rows:
        how = shown or {}
        cells = [[_cell(v) if v is None else how.get(k, _cell)(v) for k, v in r.items()] for r in rows]
        table(list(rows[0]), cells, title)


def _cell(value: object) -> str:
    """A value in a table: nothing is a dash, lists and objects are words."""
    if isinstance(value, Mapping):
        return " ".join(f"{k}={v}" for k, v in value.items()) or "-"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else " ".join(str(value).splitlines())


def table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on stdout, as wide as the terminal at most."""
    print(plain(head, rows, title, width(), bold=sys.stdout.isatty() and "NO_COLOR" not in os.environ), end="")


def width() -> int | None:
    """Columns of what stdout is shown on: what $COLUMNS says, else the terminal's; None where it is a file or pipe."""
    if said := natural(os.environ.get("COLUMNS", "")):
        return said
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def lines(text: str, indent: str = "") -> str:
    """``text`` as lines of the terminal's width, further ones behind ``indent``."""
    return "\n".join(wrapped(text, width() or len(text) + 1, indent))


def wrapped(text: str, limit: int, indent: str = "") -> list[str]:
    """``text`` in lines of at most ``limit``, broken at blanks alone: a word that is longer has a line of its own."""
    broken = textwrap.wrap(text, limit, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return broken or [""]


def plain(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    limit: int | None = None,
    *,
    bold: bool = False,
) -> str:
    """The table as text: numbers to the right, no trailing blanks.

    Where it is wider than ``limit``, cells are broken at blanks; where that is not enough, each row becomes lines of
    ``column: value``, a blank line between rows. Words and numbers stay whole.
    """
    natural = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    right = [_is_numeric(r[i] for r in rows) for i in range(len(head))]
    least = [max(_longest_word(r[i]) for r in [head, *rows]) for i in range(len(head))]
    above = [title] if title and limit is None else wrapped(title, limit or 0) if title else []
    fitted = _fitted(natural, least, limit)
    if fitted is None:
        blocks = ["\n".join(_pairs(head, row, limit or 0)) for row in rows]
        return "\n".join([*above, "\n\n".join(blocks), ""])
    body = []
    for n, row in enumerate([head, *rows]):
        broken = [wrapped(c, w) if len(c) > w else [c] for c, w in zip(row, fitted, strict=True)]
        for i in range(max(map(len, broken))):
            parts = [b[i] if i < len(b) else "" for b in broken]
            cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(parts, fitted, right, strict=True)]
            line = "  ".join(cells).rstrip()
            body.append(f"\033[1m{line}\033[0m" if bold and not n else line)
    return "\n".join([*above, *body, ""])


def _fitted(natural: Sequence[int], least: Sequence[int], limit: int | None) -> list[int] | None:
    """The width of each column: what it needs, the widest ones less where the table would be wider than ``limit``; None
    where a word would be broken.
    """
    room = sum(natural) if limit is None else limit - 2 * (len(natural) - 1)
    if sum(least) > room:
        return None
    for most in range(max(natural), 0, -1):
        fitted = [min(n, max(few, most)) for n, few in zip(natural, least, strict=True)]
        if sum(fitted) <= room:
            return fitted
    return list(least)


def _pairs(head: Sequence[str], row: Sequence[str], limit: int) -> Iterator[str]:
    """A row as lines of ``column: value``, as many in a line as it holds."""
    line = ""
    for name, value in zip(head, row, strict=True):
        pair = f"{name}: {value}"
        if line and len(line) + 2 + len(pair) > limit:
            yield from wrapped(line, limit, "  ")
            line = ""
        line += f"  {pair}" if line else pair
    yield from wrapped(line, limit, "  ")


def _longest_word(cell: str) -> int:
    return max(map(len, cell.split()), default=0)


def _is_numeric(cells: Iterable[str]) -> bool:
    known = [c for c in cells if c not in ("", "-")]
    return bool(known) and all(c[0].isdigit() or (c[0] in "-+." and c[1:2].isdigit()) for c in known)


def _rich() -> bool:
    if "NO_COLOR" in os.environ:
        return False
    from importlib.util import find_spec

    return find_spec("rich") is not None


def so_far(began: float, done: int, total: int) -> str:
    """``3 of 9, about 12 s left``: how far a job is that began at a ``time.monotonic()``, going by its rate so far."""
    left = (time.monotonic() - began) / done * (total - done) if done else 0.0
    return f"{done} of {total}" + (f", about {left:.0f} s left" if 0 < done < total else "")


class Progress(Protocol):
    """Counts steps of one job."""

    def __call__(self, done: int, note: str = "") -> None:
        """``done`` steps are behind us."""


@contextmanager
def progress(what: str, total: int) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere one line when the job starts and one when it ends."""
    if sys.stderr.isatty() and _rich():
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(what, total=total, note="")
            yield lambda done, note="": bars.update(task, completed=done, note=note)
    else:
        say(f"{what} ...")
        yield lambda done, note="": None
