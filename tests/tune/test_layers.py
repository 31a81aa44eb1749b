"""Which layer and which bucket answers a query, and what is said about it."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest

from tests.tune.records import COLD, H200, record
from vortex.kinds.buckets import bucket_of
from vortex.schedules.space import Space
from vortex.tune.exchange import write_lines
from vortex.tune.explain import explain
from vortex.tune.layers import Layers, Lines, Query
from vortex.tune.record import MachineKey, Record
from vortex.tune.store import Store

SPACE = Space("cuda.attend@1", tuple({"warps": n} for n in (1, 2, 4, 8)), {"warps": 4})
NEAR = bucket_of("attend", 128, 2048, 30)


def query(**changes: object) -> Query:
    r = record(**changes)  # type: ignore[arg-type]
    return Query(r.key, r.target, r.template, r.measure)


def lines(tmp_path: Path, name: str, *records: Record) -> Lines:
    path = tmp_path / f"{name}.jsonl"
    path.write_bytes(write_lines(records))
    return Lines([path])


def test_the_first_layer_of_the_nearest_bucket(tmp_path: Path) -> None:
    user = Store(tmp_path / "t.db")
    user.put([record({"warps": 1}, 9.0), record({"warps": 8}, 1.0, bucket=NEAR)])
    shipped = lines(tmp_path, "shipped", record({"warps": 2}, 5.0))
    layers = Layers({"user": user, "shipped": shipped})
    found = layers.find(query(), SPACE)
    assert found is not None
    assert (found.layer, found.steps, dict(found.record.config)) == ("user", 0, {"warps": 1})
    found = Layers({"shipped": shipped, "user": user}).find(query(), SPACE)
    assert found is not None and found.layer == "shipped"
    user.remove([record({"warps": 1}).id])
    found = layers.find(query(), SPACE)
    assert found is not None
    assert (found.layer, found.steps) == ("shipped", 0), "this bucket of a later layer before a near one"
    found = layers.find(query(bucket=bucket_of("attend", 256, 2048, 30)), SPACE)
    assert found is not None
    assert (found.layer, found.steps) == ("user", 1)
    assert layers.find(query(ir="vx1:other"), SPACE) is None


def test_a_point_outside_the_space_is_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = [record({"warps": 3}, 1.0), record({"warps": 4, "more": 1}, 2.0)]
    layers = Layers({"project": lines(tmp_path, "p", *odd, record({"warps": 2}, 5.0))})
    with caplog.at_level(logging.WARNING):
        found = layers.find(query(), SPACE)
    assert found is not None and dict(found.record.config) == {"warps": 2}
    assert len(caplog.records) == 2


def test_bad_lines_and_broken_files_are_misses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"{\n" + write_lines([record()]) + b"\xff\xfe\n")
    gone = Lines([tmp_path / "gone.jsonl"])
    store = Store(tmp_path / "t.db")
    store.put([record(us=1.0)])
    with sqlite3.connect(tmp_path / "t.db") as db:
        db.execute("DROP TABLE records")
    db.close()
    layers = Layers({"user": store, "gone": gone, "project": Lines([path])})
    with caplog.at_level(logging.WARNING):
        found = layers.find(query(), SPACE)
    assert found is not None and found.layer == "project"
    said = " ".join(r.getMessage() for r in caplog.records)
    assert "bad.jsonl:1" in said and "bad.jsonl:3" in said and "gone.jsonl" in said and "cannot be read" in said


def test_explain_says_which_component_differs(tmp_path: Path) -> None:
    def ask(*records: Record, **changes: object) -> str:
        layers = Layers({"project": lines(tmp_path, "p", *records)} if records else {})
        return explain(layers, query(**changes)).reason

    assert ask() == "there is no database"
    assert "no layer has a record" in ask(record(kind="append"))
    assert ask(record()) == "its own bucket was measured"
    assert "1 steps off" in ask(record(bucket=NEAR))
    assert "no bucket within" in ask(record(bucket=bucket_of("attend", 4096, 1, 1)))
    assert "differs in ir" in ask(record(ir="vx1:other"))
    assert "differs in sms" in ask(
        record(target=MachineKey("sm_90a", 114, 232448)), record(ir="x", template="cuda.attend@2")
    )
    assert "differs in template" in ask(record(template="cuda.attend@2"))
    assert "may be used: wrong" in ask(record(status="wrong"))
    found = explain(Layers({"project": lines(tmp_path, "p", record(template="cuda.attend@2"))}), query())
    assert found.nearest[0].components == {"template": ("cuda.attend@1", "cuda.attend@2")}
    assert found.query.target == H200 and found.query.measure == COLD
