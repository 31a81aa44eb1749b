"""Records on their way between people: canonical JSON Lines, in files."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vortex.errors import BAD_RECORDS, NO_SUCH_FILE, NOT_DATABASE, writing
from vortex.install.whole_files import replace_file
from vortex.tune.parse import BadRecordError, parse_line
from vortex.tune.record import Record, merge
from vortex.tune.store import Store

LIMIT = 1 << 28
"""Bytes of a file that is read; no honest database comes near."""

_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text of JSON Lines holds."""

    records: list[Record]
    problems: list[str]
    """A line for each line that is not a record, or repeats the id of another."""
    lines: int


def write_lines(records: Iterable[Record]) -> bytes:
    """Canonical JSON Lines: one record of each id, sorted; the same for the same set of records."""
    return "".join(f"{r.to_line()}\n" for r in merge(records)).encode()


def read_lines(data: bytes) -> Reading:
    """The records of JSON Lines, and what is wrong with the other lines; never raises."""
    found: list[Record] = []
    problems: list[str] = []
    seen: dict[str, Record] = {}
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            r = parse_line(line)
        except BadRecordError as e:
            problems.append(f"line {number}: {e}")
            continue
        if r.id in seen:
            same = "with the same content" if seen[r.id] == r else "with other samples"
            problems.append(f"line {number}: {r.id} is there twice, {same}; import merges them")
        seen[r.id] = r
        found.append(r)
    return Reading(merge(found), problems, sum(bool(x.strip()) for x in lines))


def read_file(path: Path, *, skip_bad: bool = False) -> list[Record]:
    """The records of a JSON Lines file or of a database file.

    Raises:
        VortexError: VX7002 when it cannot be read, VX8001 for a damaged database, VX8003 for lines that are no
            records unless ``skip_bad``.
    """
    data = read_bytes(path)
    if data.startswith(_SQLITE):
        try:
            with Store(path, write=False) as store:
                return list(store.records())
        except sqlite3.Error as e:
            raise NOT_DATABASE.at(path=path, why=str(e)) from None
    return parsed(data, str(path), skip_bad=skip_bad)


def read_bytes(path: Path) -> bytes:
    """A whole file of reasonable size; VX7002."""
    try:
        if path.stat().st_size > LIMIT and not path.is_dir():
            raise NO_SUCH_FILE.at(path=path, why=f"has more than {LIMIT >> 20} MiB: it is not a tuning database")
        return path.read_bytes()
    except OSError as e:
        raise NO_SUCH_FILE.at(path=path, why=f"cannot be read: {e.strerror or e}") from None


def parsed(data: bytes, source: str, *, skip_bad: bool = False) -> list[Record]:
    """The records of JSON Lines; VX8003 when there are lines that are none, unless ``skip_bad``."""
    found = read_lines(data)
    bad = [p for p in found.problems if "is there twice" not in p]
    if bad and not skip_bad:
        raise BAD_RECORDS.at(path=source, bad=len(bad), all=found.lines, why=bad[0])
    return found.records


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` whole, in a folder that is made for it; VX7004 when the disk refuses."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)
