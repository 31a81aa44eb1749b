"""docs/explain.md has the rules as they are, and every limiter."""

from __future__ import annotations

from pathlib import Path

from vortex.remarks.remark import RULES
from vortex.targets.gpu import H200
from vortex.targets.roofline import Demand, Times

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "explain.md").read_text()


def test_the_table_of_rules_is_that_of_the_code() -> None:
    table = TEXT.split("## Rules\n")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{name}` | {r.says} | {r.source} |" for name, r in RULES.items()]


def test_every_limiter_is_told_of() -> None:
    table = TEXT.split("## What a kernel waits for\n")[1].split("\n## ")[0]
    for name in Times.of(Demand(1.0), H200).by_resource:
        assert f"| `{name}` |" in table
