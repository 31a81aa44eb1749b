"""The local store of records: one SQLite file, safe under many writers, readable where it cannot be written.

Write-ahead logging lets readers read while one writer writes; a writer waits for its turn. Where the file lies on a
network file system, in a folder that cannot be written, or is itself write-protected, it is opened to be read only.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from vortex.errors import CANNOT_WRITE, NO_SUCH_FILE, NOT_DATABASE, READ_ONLY_DATABASE, VortexError
from vortex.kinds.buckets import Bucket
from vortex.tune.parse import BadRecordError, parse_line
from vortex.tune.record import Record

SCHEMA = 1
"""``user_version`` of the file."""

BUSY_SECONDS = 60.0

NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse.sshfs", "9p", "afs", "glusterfs")
"""File systems, by the beginning of their name, whose locks write-ahead logging cannot trust."""

_TABLE = """
CREATE TABLE records (
    id TEXT PRIMARY KEY, lookup TEXT NOT NULL, rows INTEGER NOT NULL, columns INTEGER NOT NULL, kept INTEGER NOT NULL,
    kind TEXT NOT NULL, arch TEXT NOT NULL, noisy INTEGER NOT NULL, us REAL, n INTEGER NOT NULL, body TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX best ON records (lookup, rows, columns, kept, noisy, us, n) WHERE us IS NOT NULL;
CREATE TABLE buckets (
    lookup TEXT NOT NULL, rows INTEGER NOT NULL, columns INTEGER NOT NULL, kept INTEGER NOT NULL,
    PRIMARY KEY (lookup, rows, columns, kept)
) WITHOUT ROWID;
CREATE INDEX kinds ON records (kind, arch);
"""

_HERE = "lookup = ? AND rows = ? AND columns = ? AND kept = ?"
_USABLE = (
    "SELECT 1 FROM records r WHERE r.lookup = buckets.lookup AND r.rows = buckets.rows"
    " AND r.columns = buckets.columns AND r.kept = buckets.kept AND r.us IS NOT NULL"
)

log = logging.getLogger("vortex.tune")


class Store:
    """A database file. One object serves one thread; as many processes as like may have one each."""

    def __init__(self, path: str | Path, *, write: bool = True) -> None:
        """Open ``path``, made when it is not there and ``write``.

        Raises:
            VortexError: VX8001 when it is something else or damaged, VX7002 when it is not there to be read, VX7004
                when the disk refuses.
        """
        self.path = Path(path)
        self.read_only = "" if write else "it was opened to be read"
        if write:
            self.read_only = _why_read_only(self.path)
        if self.read_only and not self.path.exists():
            if not write:
                raise NO_SUCH_FILE.at(path=path, why="does not exist")
            raise NOT_DATABASE.at(path=path, why=self.read_only)
        try:
            if not self.read_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._open()
        except OSError as e:
            raise CANNOT_WRITE.at(path=path, why=e.strerror or e) from None
        except sqlite3.Error as e:
            raise _refused(self.path, e) from None

    def __str__(self) -> str:
        return str(self.path)

    def _open(self) -> sqlite3.Connection:
        if self.read_only:
            # immutable: without a -shm file next to it, which could not be made; a writer elsewhere is not seen
            frozen = "" if os.access(self.path.parent, os.W_OK) and not _network(self.path) else "&immutable=1"
            db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro{frozen}", uri=True, timeout=BUSY_SECONDS)
        else:
            db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and self.read_only and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            # begun where the disk was full, or by a writer that is not done
            db.close()
            db = sqlite3.connect(":memory:")
            db.executescript(_TABLE)
        elif version == 0 and not self.read_only:
            db.execute("PRAGMA journal_mode=WAL")
            with _transaction(db):
                # another process may have come first
                if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        raise sqlite3.DatabaseError("it belongs to another program")
                    for statement in filter(str.strip, _TABLE.split(";")):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version={SCHEMA}")
        elif version != SCHEMA:
            raise sqlite3.DatabaseError(f"its schema is version {version}, this program knows {SCHEMA}")
        db.execute("PRAGMA synchronous=NORMAL")
        return db

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing --------------------------------------------------------------------------------------------

    def put(self, records: Iterable[Record]) -> int:
        """Merge ``records`` in, all or none; how many were new or brought new samples.

        Raises:
            VortexError: VX8002 when the file can only be read, VX8001 when it is damaged, VX7004 when the disk refuses.
        """
        if self.read_only:
            raise READ_ONLY_DATABASE.at(path=self.path, why=self.read_only)
        changed = 0
        try:
            with _transaction(self._db):
                for r in records:
                    row = self._db.execute("SELECT body FROM records WHERE id = ?", (r.id,)).fetchone()
                    kept = self._parsed(row[0]) if row else None
                    merged = r.merged(kept) if kept else r
                    body = merged.to_line()
                    if row and row[0] == body:
                        continue
                    changed += 1
                    self._db.execute(
                        "INSERT OR REPLACE INTO records VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                        (
                            merged.id, merged.lookup, *_numbers(merged.key.bucket), merged.key.kind,
                            merged.target.arch, merged.noisy, merged.us, len(merged.samples), body,
                        ),
                    )  # fmt: skip
                    self._note_bucket(merged)
        except sqlite3.Error as e:
            raise _refused(self.path, e) from None
        return changed

    def _note_bucket(self, r: Record) -> None:
        """Keep ``buckets`` what it says: those with usable records."""
        at = r.lookup, *_numbers(r.key.bucket)
        if r.us is not None:
            self._db.execute("INSERT OR IGNORE INTO buckets VALUES (?,?,?,?)", at)
        else:
            self._db.execute(f"DELETE FROM buckets WHERE {_HERE} AND NOT EXISTS ({_USABLE})", at)

    def remove(self, ids: Iterable[str]) -> int:
        """Forget records; how many there were. Raises as :meth:`put`."""
        if self.read_only:
            raise READ_ONLY_DATABASE.at(path=self.path, why=self.read_only)
        try:
            with _transaction(self._db):
                gone = sum(self._db.execute("DELETE FROM records WHERE id = ?", (i,)).rowcount for i in ids)
                self._db.execute(f"DELETE FROM buckets WHERE NOT EXISTS ({_USABLE})")
        except sqlite3.Error as e:
            raise _refused(self.path, e) from None
        return gone

    # --- reading --------------------------------------------------------------------------------------------

    def best(self, lookup: str, bucket: Bucket) -> Iterator[Record]:
        """Usable records of a bucket, the best first: calm before noisy, then the fastest, then most samples."""
        query = (
            "SELECT body FROM records WHERE lookup = ? AND rows = ? AND columns = ? AND kept = ? AND us IS NOT NULL"
            " ORDER BY noisy, us, n DESC, id"
        )
        with closing(self._db.execute(query, (lookup, *_numbers(bucket)))) as rows:
            for (body,) in rows:
                if (found := self._parsed(body)) is not None:
                    yield found

    def buckets(self, lookup: str, near: Bucket | None = None) -> list[Bucket]:
        """Those with usable records; with ``near``, those that may stand in for it on each axis by itself."""
        # a table of its own: DISTINCT would look at every record of every bucket
        at: list[str | int] = [lookup]
        query = "SELECT rows, columns, kept FROM buckets WHERE lookup = ?"
        if near is not None:
            query += " AND rows BETWEEN ? AND ? AND columns BETWEEN ? AND ? AND kept BETWEEN ? AND ?"
            at += [n for limits in near.reach for n in limits]
        return list(map(Bucket._make, self._db.execute(query, at)))

    def records(self, kind: str | None = None, arch: str | None = None) -> Iterator[Record]:
        """All records in order of id, or those of one kernel kind and architecture."""
        wanted = {name: x for name, x in (("kind", kind), ("arch", arch)) if x is not None}
        where = " AND ".join(f"{name} = ?" for name in wanted) or "1"
        for (body,) in self._db.execute(f"SELECT body FROM records WHERE {where} ORDER BY id", tuple(wanted.values())):
            if (found := self._parsed(body)) is not None:
                yield found

    def find(self, prefix: str) -> list[Record]:
        """Those whose id begins with ``prefix``."""
        query = "SELECT body FROM records WHERE id >= ? AND id < ? ORDER BY id"
        rows = self._db.execute(query, (prefix, prefix + "g"))
        return [r for (body,) in rows if (r := self._parsed(body)) is not None]

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM records").fetchone()[0])

    def problems(self) -> list[str]:
        """What is wrong with the file: SQLite's own check, and rows that are not records or lie at the wrong place."""
        found = [str(row[0]) for row in self._db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        columns = "id, lookup, rows, columns, kept, kind, arch, noisy, us, n, body"
        for row in self._db.execute(f"SELECT {columns} FROM records ORDER BY id"):
            try:
                r = parse_line(row[-1])
            except BadRecordError as e:
                found.append(f"record {row[0]!r}: {e}")
                continue
            bucket = _numbers(r.key.bucket)
            kept = (r.id, r.lookup, *bucket, r.key.kind, r.target.arch, r.noisy, r.us, len(r.samples))
            if row[:-1] != kept:
                found.append(f"record {row[0]!r}: its index does not say what it says")
        return found

    def _parsed(self, body: object) -> Record | None:
        """The record of a row; a bad one is a miss and a line in the log."""
        try:
            return parse_line(body if isinstance(body, str | bytes) else str(body))
        except BadRecordError as e:
            log.warning("%s: a record is skipped: it %s", self.path, e)
            return None


def _numbers(bucket: Bucket) -> tuple[int, int, int]:
    return bucket.rows, bucket.columns, bucket.kept


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # SQLite itself rolls back where the disk is full
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _refused(path: Path, error: sqlite3.Error) -> VortexError:
    """What SQLite says, as an error that tells a disk which refuses (VX7004) from a file that is no database."""
    # the lower byte; what is above it says more, as in SQLITE_IOERR_WRITE
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return CANNOT_WRITE.at(path=path, why=error)
    return NOT_DATABASE.at(path=path, why=error)


def _why_read_only(path: Path) -> str:
    """Why ``path`` must not or cannot be written; empty when it can."""
    if kind := _network(path):
        return f"it lies on a network file system ({kind})"
    if path.exists() and not os.access(path, os.W_OK):
        return "the file is write-protected"
    folder = next((p for p in path.absolute().parents if p.exists()), Path("/"))
    return "" if os.access(folder, os.W_OK) else f"folder {folder} is write-protected"


def _network(path: Path) -> str:
    """The network file system that ``path`` lies on, or an empty string."""
    try:
        mounts = [
            line.split()
            for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
        ]
    except OSError:
        return ""
    parents = {str(p) for p in path.absolute().resolve().parents}
    inside = [m for m in mounts if len(m) > 2 and m[1].replace("\\040", " ") in parents]
    kind = max(inside, key=lambda m: len(m[1]), default=["", "", ""])[2]
    return kind if kind.startswith(NETWORK) else ""
