"""The SQLite store: many writers, readers where nobody may write, foreign and damaged files."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tune.records import record, records
from vortex.errors import VortexError
from vortex.kinds.buckets import bucket_of
from vortex.tune import store as store_file
from vortex.tune.record import Record, merge
from vortex.tune.store import Store

BUCKET = bucket_of("attend", 64, 2048, 30)


def test_best_first(tmp_path: Path) -> None:
    with Store(tmp_path / "a" / "t.db") as store:
        made = [
            record({"warps": 1}, 5.0, spread=1.5),
            record({"warps": 2}, 9.0),
            record({"warps": 3}, 8.0),
            record({"warps": 4}, 1.0, checked=False),
            record({"warps": 5}, status="wrong"),
            record({"warps": 6}, 1.0, bucket=bucket_of("attend", 1, 1, 1)),
            record({"warps": 7}, 1.0, ir="vx1:01"),
        ]
        assert store.put(made) == 7
        assert store.put(made) == 0
        found = [dict(r.config)["warps"] for r in store.best(made[0].lookup, BUCKET)]
        assert found == [3, 2, 1], "calm before noisy, then fast; only what was checked"
        assert store.buckets(made[0].lookup) == [bucket_of("attend", 1, 1, 1), BUCKET]
        assert store.problems() == []
        assert [r.id for r in store.find(made[0].id[:6])] == [made[0].id]
        turned = record({"warps": 6}, status="wrong", bucket=bucket_of("attend", 1, 1, 1), at="2026-03-03T00:00:00Z")
        assert store.put([turned]) == 1
        assert store.buckets(made[0].lookup) == [BUCKET], "its only record turned out wrong"
        assert store.remove([made[0].id, "nothing"]) == 1
        assert len(store) == 6
        assert list(store.records("attend", "sm_90a")) == merge(made[1:], [turned])
        assert list(store.records("select")) == []


@given(st.lists(st.lists(records(), max_size=4), max_size=4))
@settings(max_examples=25, deadline=None)
def test_putting_is_merging(groups: list[list[Record]]) -> None:
    store = _fresh()
    for group in groups:
        store.put(group)
    assert list(store.records()) == merge(*groups)
    assert store.problems() == []


def _fresh() -> Store:
    folder = Path(tempfile.gettempdir())
    path = folder / f"vortex-store-{os.getpid()}.db"
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return Store(path)


def write_many(path: Path, worker: int, count: int) -> None:
    store = Store(path)
    for i in range(count):
        # half of them are everybody's, so that writers merge into each other's rows
        store.put(
            [record({"warps": i, "worker": worker if i % 2 else 0}, 10.0 + worker, at=f"2026-01-01T00:00:0{worker}Z")]
        )


def test_eight_writers(tmp_path: Path) -> None:
    path, count = tmp_path / "t.db", 30
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_many, args=(path, w, count)) for w in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(120)
    assert [w.exitcode for w in workers] == [0] * 8
    with Store(path) as store:
        assert store.problems() == []
        assert len(store) == 8 * count // 2 + count // 2
        shared = [r for r in store.records() if dict(r.config)["worker"] == 0 and dict(r.config)["warps"] % 2 == 0]
        assert {len(r.samples) for r in shared} == {8}, "no writer's sample is lost"


def test_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.db"
    with Store(path) as store:
        store.put([record()])
    monkeypatch.setattr(store_file, "_network", lambda path: "nfs4")
    with Store(path) as store:
        assert "nfs4" in store.read_only
        assert [r.us for r in store.best(record().lookup, BUCKET)] == [10.0]
        with pytest.raises(VortexError, match="network file system") as e:
            store.put([record()])
        assert e.value.code == "VX8002"
    with pytest.raises(VortexError) as e:
        Store(tmp_path / "new.db")
    assert e.value.code == "VX8001"
    assert not (tmp_path / "new.db").exists()


def test_which_file_systems_are_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounts = f"server:/x {tmp_path} nfs4 rw 0 0\n/dev/a {tmp_path}/disk ext4 rw 0 0\nnone / overlay rw 0 0\n"
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **how: mounts if str(self) == "/proc/self/mounts" else real(self, **how)
    )
    (tmp_path / "disk").mkdir()
    assert store_file._network(tmp_path / "t.db") == "nfs4"
    assert store_file._network(tmp_path / "disk" / "t.db") == ""


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + b"\xff" * 4000, b""])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.db"
    path.write_bytes(content)
    if not content:
        assert len(Store(path)) == 0, "an empty file becomes a database"
        return
    with pytest.raises(VortexError) as e:
        Store(path)
    assert e.value.code == "VX8001"
    assert path.read_bytes() == content


def test_other_programs_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other (x)")
    db.close()
    with pytest.raises(VortexError, match="another program"):
        Store(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(VortexError, match="version 99"):
        Store(path)


def test_a_bad_row_is_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.db"
    with Store(path) as store:
        store.put([record({"warps": 1}, 1.0), record({"warps": 2}, 2.0)])
    with sqlite3.connect(path) as db:
        db.execute("UPDATE records SET body = '{' WHERE us = 1.0")
        db.execute("UPDATE records SET us = 3.0 WHERE us = 2.0")
    db.close()
    with Store(path) as store, caplog.at_level(logging.WARNING):
        assert [r.us for r in store.best(record().lookup, BUCKET)] == [2.0]
        assert len(caplog.records) == 1
        assert len(store.problems()) == 2


def test_a_full_disk(tmp_path: Path) -> None:
    """An error that says so; what was there is there, and a writer goes on once there is space."""
    made = [record({"warps": n}, 5.0) for n in range(1, 400)]
    with Store(tmp_path / "t.db") as store:
        store.put(made[:20])
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then says what it says of a full disk
        with pytest.raises(VortexError, match=r"VX7004.*t\.db.*full"):
            store.put(made)
        assert (len(store), store.problems()) == (20, [])
        store._db.execute("PRAGMA max_page_count = 1000000")
        assert store.put(made) == len(made) - 20


def test_a_disk_without_room_for_a_database(tmp_path: Path) -> None:
    """A file of no bytes may stay; it is an empty database, to writers and to readers."""
    (tmp_path / "t.db").touch()
    with Store(tmp_path / "t.db", write=False) as store:
        assert (len(store), list(store.records()), store.buckets("x")) == (0, [], [])
    (tmp_path / "file").touch()
    with pytest.raises(VortexError, match="VX7004"):
        Store(tmp_path / "file" / "t.db")
