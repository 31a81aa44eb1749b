"""Schedules that people edited: whatever is no schedule is said so, and nothing crashes."""

from __future__ import annotations

from pathlib import Path

import pytest
from vortex.ir.schedules import check_schedule

from vortex.cli.main import main
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.ir.core import Attr, Function
from vortex.ir.printer import print_module
from vortex.spec import Spec

GOOD = {"lanes": 8, "from": "user", "serves": ((8, 64, 32),)}


def kernel(schedule: Attr) -> Function:
    return Function("kernel", "select", [], [], {"kind": "select", "schedule": schedule})


@pytest.mark.parametrize(
    "schedule", [{}, GOOD, {**GOOD, "variants": (GOOD, GOOD)}, {"flops_per_byte": 0.5, "table": (GOOD,)}]
)
def test_good(schedule: Attr) -> None:
    check_schedule(kernel(schedule))
    check_schedule(Function("kernel", "plan", [], [], {"kind": "plan"}))


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (3, "numbers by name"),
        ({"lanes": "x"}, "lanes is 'x'; a number"),
        ({"lanes": (1, 2)}, "lanes"),
        ({"from": 3}, "from is 3; a string"),
        ({"serves": 4}, "serves"),
        ({"serves": ((1, 2),)}, "serves"),
        ({"serves": ((1, 2, -3),)}, "serves"),
        ({"serves": ((1, 2, 1 << 40),)}, "serves"),
        ({"variants": 3}, "variants is 3; a list"),
        ({"variants": (3,)}, "variants[0]"),
        ({"variants": ({"lanes": 8},)}, "variants[0] is {'lanes': 8}; 'serves'"),
        ({"variants": ({**GOOD, "lanes": "x"},)}, "variants[0]: lanes"),
        ({"variants": ({**GOOD, "variants": ()},)}, "variants[0]"),
        ({"variants": (GOOD,) * 65}, "at most 64"),
        ({"table": ({"serves": 1},)}, "table[0]: serves"),
        ({"variant_of": "attend"}, "variant_of"),
    ],
)
def test_bad(schedule: Attr, says: str) -> None:
    with pytest.raises(VortexError, match="VX2005") as caught:
        check_schedule(kernel(schedule))
    assert says in caught.value.render()


def test_a_file_with_a_bad_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = compile_flow("quest", spec=Spec(), to="page").programs["cpu"]
    file = tmp_path / "q.page"
    file.write_text(print_module(program).replace("lanes = 16", 'lanes = "x"', 1))
    assert main(["compile", "--from", "page", str(file), "--no-dump", "-o", str(tmp_path / "q.vxa")]) == 2
    assert "VX2005" in capsys.readouterr().err
