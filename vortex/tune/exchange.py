"""Records on their way between people: canonical JSON Lines, in files or behind URLs, pinned by SHA-256."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vortex.errors import BAD_RECORDS, NO_SUCH_FILE, NOT_DATABASE, PIN_MISMATCH, TRANSFER_FAILED
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
    """A line for each line that is no record, or repeats the id of another."""
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
            raise NO_SUCH_FILE.at(path=path, why=f"has more than {LIMIT >> 20} MiB: it is no tuning database")
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
    """Replace ``path`` whole; VX7002 when the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as e:
        raise NO_SUCH_FILE.at(path=path, why=f"cannot be written: {e.strerror or e}") from None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def split_pin(url: str) -> tuple[str, str]:
    """A URL and the SHA-256 behind its ``#sha256=``, empty where there is none."""
    plain, _, pin = url.partition("#sha256=")
    return plain, pin.lower()


def fetch(url: str, pin: str = "") -> bytes:
    """What a URL or path holds. ``file`` always works; other schemes (http, https, s3, ..) need fsspec.

    Raises:
        VortexError: VX8005 when it cannot be had, VX8004 when it is not what ``pin`` says.
    """
    if pin and not re.fullmatch("[0-9a-f]{64}", pin):
        raise TRANSFER_FAILED.at(url=url, why=f"'{pin[:80]}' is no SHA-256 in hex", hint="sha256sum FILE")
    local = _local(url)
    data = read_bytes(local) if local is not None else _remote(url)
    if pin and (got := sha256(data)) != pin:
        raise PIN_MISMATCH.at(url=url, got=got, want=pin)
    return data


def publish(url: str, records: Iterable[Record]) -> tuple[bytes, int]:
    """Merge ``records`` into what is at ``url``; the bytes that are there now, and how many records it had.

    Raises:
        VortexError: VX8005 when it cannot be written, VX8003 when there is something else already.
    """
    local = _local(url)
    if local is not None:
        old = parsed(read_bytes(local), url) if local.exists() else []
        data = write_lines(merge(old, records))
        write_file(local, data)
        return data, len(old)
    fsspec = _fsspec(url)
    try:
        fs, path = fsspec.core.url_to_fs(url)
        old = parsed(fs.cat_file(path), url) if fs.exists(path) else []
        data = write_lines(merge(old, records))
        fs.pipe_file(path, data)
    except (OSError, ValueError, ImportError, NotImplementedError) as e:
        raise TRANSFER_FAILED.at(url=url, why=str(e)[:300] or type(e).__name__, hint=_HINT) from None
    return data, len(old)


_HINT = "check the address; credentials are those of the scheme's own tools"


def _local(url: str) -> Path | None:
    """The path that a ``file:`` URL or a plain path means."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in url else Path(url)


def _remote(url: str) -> bytes:
    fsspec = _fsspec(url)
    try:
        with fsspec.open(url, "rb") as f:
            data = f.read(LIMIT + 1)
    except (OSError, ValueError, ImportError, NotImplementedError) as e:
        raise TRANSFER_FAILED.at(url=url, why=str(e)[:300] or type(e).__name__, hint=_HINT) from None
    if len(data) > LIMIT:
        raise TRANSFER_FAILED.at(url=url, why=f"it has more than {LIMIT >> 20} MiB", hint=_HINT)
    return bytes(data)


def _fsspec(url: str):  # type: ignore[no-untyped-def]
    if find_spec("fsspec") is None:
        hint = "pip install 'vortex[share]', or fetch the file by other means and import it"
        raise TRANSFER_FAILED.at(url=url, why="fsspec is not installed", hint=hint)
    import fsspec

    return fsspec
