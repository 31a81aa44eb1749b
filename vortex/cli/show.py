"""Tables and progress for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from vortex.errors import writing


def say(text: str) -> None:
    """A message, to stderr: stdout is for data."""
    print(text, file=sys.stderr, flush=True)


def write_text(text: str, out: Path) -> None:
    """Replace the file ``out`` whole, or leave it as it was; a device or pipe is written to.

    Raises:
        VortexError: VX7004 when the disk refuses.
    """
    with writing(out):
        if out.exists() and not out.is_file():
            out.write_text(text, encoding="utf-8")
            return
        # where a link leads to, not the link
        whole = out.resolve()
        scratch = whole.with_name(f".{whole.name}.part")
        try:
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(whole)
        finally:
            scratch.unlink(missing_ok=True)


def emit_json(value: object) -> None:
    """``value`` as JSON on stdout."""
    print(json.dumps(value, indent=2, default=str))


def listing(rows: Sequence[Mapping[str, object]], as_json: bool, title: str = "") -> None:
    """Rows with the same keys, as a table or as JSON."""
    if as_json:
        emit_json(rows)
    elif rows:
        table(list(rows[0]), [[str(v) for v in r.values()] for r in rows], title)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on stdout: rich's on a terminal that has it, else aligned columns."""
    if _rich():
        from rich.console import Console
        from rich.table import Table

        made = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
        numeric = [_is_numeric(r[i] for r in rows) for i in range(len(head))]
        for name, right in zip(head, numeric, strict=True):
            made.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in rows:
            made.add_row(*(cell.replace("[", r"\[") for cell in row))
        Console().print(made)
    else:
        print(plain(head, rows, title), end="")


def plain(head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """The table as text: numbers to the right, no trailing blanks."""
    width = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    right = [_is_numeric(r[i] for r in rows) for i in range(len(head))]
    lines = [title] if title else []
    for row in [head, *rows]:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, width, right, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, ""])


def _is_numeric(cells: Iterable[str]) -> bool:
    known = [c for c in cells if c not in ("", "-")]
    return bool(known) and all(c[0].isdigit() or (c[0] in "-+." and c[1:2].isdigit()) for c in known)


def _rich() -> bool:
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return False
    from importlib.util import find_spec

    return find_spec("rich") is not None


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
