"""The report on tuning: defaults against the best and against what a compile takes."""

from __future__ import annotations

import pytest

from bench.tune_report import rows_of, summary
from tests.tune.records import record
from vortex.kinds.buckets import bucket_of
from vortex.tune.bundle import Candidate
from vortex.tune.record import Record

TIMES = {1: {4: 12.0, 2: 10.0, 8: 11.0}, 64: {4: 20.0, 2: 40.0, 8: 16.0}}
"""Microseconds by requests and warps; 4 warps are the default."""


def records() -> list[Record]:
    return [
        record({"warps": warps}, us, bucket=bucket_of("attend", rows, 64, 30))
        for rows, by_warps in TIMES.items()
        for warps, us in by_warps.items()
    ]


@pytest.mark.parametrize(("most", "gains"), [(1, [12 / 11, 20 / 16]), (2, [12 / 10, 20 / 16]), (4, [12 / 10, 20 / 16])])
def test_gains(most: int, gains: list[float]) -> None:
    found = records()
    key = found[0].key
    default, other = (
        Candidate("quest", "attend", "attend", key.ir, key.dtypes, "cuda.attend@1", {"warps": w}) for w in (4, 2)
    )
    unknown = Candidate("quest", "attend", "attend", "vx1:other", key.dtypes, "cuda.attend@1", {"warps": 1})
    rows = rows_of([default, other, unknown], [*found, record({"warps": 3}, status="crash")], most)
    assert [r.gain for r in rows] == pytest.approx(gains)
    assert [r.default_over_best for r in rows] == pytest.approx([1.2, 1.25])
    assert [(r.default, r.best) for r in rows] == [({"warps": 4}, {"warps": 2}), ({"warps": 4}, {"warps": 8})]
    said = summary(rows)
    assert said["default_over_best"] == {"median": 1.225, "largest": 1.25}
    assert said["gain"]["least"] == pytest.approx(min(gains), abs=1e-4)


def test_a_shape_without_its_default_is_left_out() -> None:
    found = [r for r in records() if dict(r.config) != {"warps": 4} or r.key.bucket.rows == 1]
    key = found[0].key
    default = Candidate("quest", "attend", "attend", key.ir, key.dtypes, "cuda.attend@1", {"warps": 4})
    assert [r.bucket for r in rows_of([default], found, 4)] == [str(bucket_of("attend", 1, 64, 30))]
