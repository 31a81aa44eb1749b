"""The interpreter's bytes beside those that Nsight Compute measured on an H200."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vortex.budget import Budget
from vortex.check.kernel_costs import Step, kernel_costs
from vortex.driver import compile_flow
from vortex.spec import Spec
from vortex.targets.gpu import H200
from vortex.targets.target import TARGETS

ROOT = Path(__file__).resolve().parents[2]
ROWS = json.loads((ROOT / "bench/results/h200/bytes.json").read_text())["rows"]


@pytest.mark.parametrize("flow", ["quest", "block_topk", "examples/quest_then_mass.py"])
def test_bytes_are_within_5_percent_of_ncus(flow: str) -> None:
    """And the measurement is of the bytes that are counted today, which a report tells."""
    path = str(ROOT / flow) if ".py" in flow else flow
    program = compile_flow(path, targets=[TARGETS["sm_90a"]], to="page").programs["sm_90a"]
    mine = [r for r in ROWS if r["flow"] == Path(flow).stem and r["kind"] != "append"]
    assert len(mine) == 4
    for r in mine:
        step = Step(8 * r["requests"], r["tokens"], Budget(27))
        cost = next(c for c in kernel_costs(program, Spec(), step, H200) if c.kernel == r["kind"])
        assert (round(cost.read), round(cost.written)) == (r["counted"]["read"], r["counted"]["written"])
        moved = r["measured"]["dram_read"] + r["measured"]["dram_written"]
        assert cost.read + cost.written == pytest.approx(moved, rel=0.05)
        assert cost.read == pytest.approx(r["measured"]["dram_read"], rel=0.05)
