"""What vortex ships: canonical records of our own runs, each of a template that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from vortex.codegen.space import template_of
from vortex.target import TARGETS
from vortex.tune.exchange import read_lines, write_lines
from vortex.tune.layers import SHIPPED

FILES = sorted(SHIPPED.glob("*.jsonl"))


def test_something_is_shipped() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_records_are_canonical_and_of_the_templates(path: Path) -> None:
    found = read_lines(path.read_bytes())
    assert not found.problems
    assert write_lines(found.records) == path.read_bytes()
    for r in found.records:
        assert r.status == "ok" and r.us is not None, r.id
        assert r.template == template_of(TARGETS[r.target.arch], r.key.kind), r.id
