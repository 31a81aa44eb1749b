"""docs/ir.md: its tables are current, its examples do what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.passes.manager import PassContext, run_pipeline

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```\n(.*?)```\n.*?```\n(.*?)```\n", re.DOTALL)
EXAMPLES = EXAMPLE.findall((DOCS / "ir.md").read_text())


def test_tables_are_current() -> None:
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=DOCS.parent, env={"PYTHONPATH": "."})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("passes", "before", "after"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_examples(passes: str, before: str, after: str) -> None:
    assert print_module(run_pipeline(parse_module(before), passes, PassContext())) == after


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2
