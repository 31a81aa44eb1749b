"""Buckets and their fallbacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vortex.kinds.buckets import FALLBACK_STEPS, Bucket, bucket_of, fallbacks, serving
from vortex.kinds.kind import KINDS


@pytest.mark.parametrize("kind", KINDS)
@given(rows=st.integers(1, 5000), columns=st.integers(1, 70000), kept=st.integers(1, 5000))
def test_a_bucket_is_the_next_power_of_two(kind: str, rows: int, columns: int, kept: int) -> None:
    b = bucket_of(kind, rows, columns, kept)
    for axis, n in (("rows", rows), ("columns", columns), ("kept", min(kept, columns))):
        size = getattr(b, axis)
        if axis in KINDS[kind].axes:
            assert size & (size - 1) == 0
            assert n <= size < 2 * n or size == n == 1
        else:
            assert size == 0


def test_fallbacks_are_ordered() -> None:
    wanted = Bucket(64, 2048, 32)
    assert fallbacks(wanted, []) == []
    near = [Bucket(32, 2048, 32), Bucket(128, 2048, 32), Bucket(64, 1024, 32), Bucket(64, 2048, 64), wanted]
    far = [Bucket(64, 2048 << FALLBACK_STEPS, 32), Bucket(64 << (FALLBACK_STEPS + 1), 2048, 32)]
    other = [Bucket(64, 0, 32)]
    assert fallbacks(wanted, [*far, *near, *other]) == [
        (0, wanted),
        (1, Bucket(128, 2048, 32)),
        (1, Bucket(64, 2048, 64)),
        (1, Bucket(64, 1024, 32)),
        (1, Bucket(32, 2048, 32)),
        (FALLBACK_STEPS, Bucket(64, 2048 << FALLBACK_STEPS, 32)),
    ]


def test_of_several_the_nearest_serves_and_the_first_where_none_is_near() -> None:
    few, many = Bucket(8, 2048, 32), Bucket(128, 2048, 32)
    lines = [("many", (many,)), ("few", (few, Bucket(2, 2048, 32)))]
    assert [serving(Bucket(rows, 2048, 32), lines) for rows in (1, 16, 64, 1 << 12)] == ["few", "few", "many", "many"]
    assert serving(Bucket(1, 1 << 20, 32), lines) == "many"
    assert serving(few, [("default", ()), *lines]) == "few"
    assert serving(few, [("default", ())]) == "default"
    assert serving(few, [("first", (few,)), ("second", (few,))]) == "first"
