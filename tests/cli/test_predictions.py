"""``vortex info --shape``: what predictions are worth stands below them."""

from __future__ import annotations

from pathlib import Path

import pytest

import vortex
from vortex.cli.predictions import _tuned
from vortex.driver import compile_flow
from vortex.install import databases
from vortex.targets.target import TARGETS
from vortex.tune.shapes import Shape


def test_what_the_shipped_database_measured_is_told_of_its_own_buckets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VORTEX_DB", str(tmp_path / "own.db"))
    monkeypatch.setattr(databases, "SHIPPED", Path(vortex.__file__).parent / "tune" / "shipped")
    program = compile_flow("quest", targets=[TARGETS["sm_90a"]], to="page").programs["sm_90a"]
    found = _tuned(program, "sm_90a", Shape(batch=32, kv_heads=8, tokens=32768, kept=30))
    assert {"append", "select", "attend"} <= set(found)
    assert 40 < found["select"] < 80
    assert not _tuned(program, "sm_90a", Shape(batch=3, kv_heads=8, tokens=300, kept=5)).get("select")
