"""What kernels cost: times by hand, limiters, and predictions beside what an H200 took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vortex.budget import Budget
from vortex.check.kernel_costs import Step, kernel_costs
from vortex.driver import compile_flow
from vortex.spec import Spec
from vortex.targets.gpu import H200
from vortex.targets.roofline import LAUNCH, LIST, Demand, Times
from vortex.targets.target import TARGETS

ROOT = Path(__file__).resolve().parents[2]


def test_times_are_work_over_rates() -> None:
    """An H200 has 132 SMs of 128 lanes at 1.7 GHz, copies at 4.3 TB/s, and its memory is 0.8 us away."""
    times = Times.of(Demand(4.3e9, scalar=1e9, flops=6.2e10, spilled=1e8, in_flight=132 * 4096, lists=2), H200)
    assert times.by_resource == pytest.approx(
        {
            "memory": 1e-3,
            "latency": 4.3e9 * 0.8e-6 / (132 * 4096),
            "compute": 1e-4,
            "scalar arithmetic": 1e9 / (132 * 128 * 1.7e9),
            "spills": 1e8 / (132 * 128 * 1.7e9),
        }
    )
    assert times.limiter == "latency"
    on_top = times.by_resource["scalar arithmetic"] + times.by_resource["spills"]
    assert times.seconds == pytest.approx(LAUNCH + 2 * LIST + times.by_resource["latency"] + on_top)
    assert sum(times.shares[n] for n in ("latency", "scalar arithmetic", "spills")) == pytest.approx(1)


def test_few_warps_issue_less_and_few_ctas_have_less_in_flight() -> None:
    few, many = (Times.of(Demand(1, scalar=1e6, warps=w), H200).by_resource for w in (8, 32))
    assert few["scalar arithmetic"] == 2 * many["scalar arithmetic"]
    schedule, used = {"bytes_in_flight": 65536}, {"ctas": 2, "warps": 16}
    alone, all_of = (Demand.of_bytes(1e6, schedule, used, H200, n) for n in (8, None))
    assert (alone.in_flight, all_of.in_flight) == (8 * 65536, 264 * 65536)
    assert alone.warps == pytest.approx(16 * 8 / 264)


def test_numbers_of_a_broken_manifest_count_as_none() -> None:
    assert Demand.of_bytes(1.0, {"bytes_in_flight": "many"}, {"ctas": None, "spills": []}, H200).in_flight == 0


@pytest.mark.parametrize(
    ("file", "flow", "rows"),
    [("mass.json", "mass_fp8", (8, 32)), ("steps.json", "quest_then_mass_fp8", (32,))],
)
def test_predicted_times_of_select_are_near_measured_ones(file: str, flow: str, rows: tuple[int, ...]) -> None:
    """Within 25 % above 50 MB; memory is the limiter of all that were measured."""
    program = compile_flow(f"{ROOT}/bench/language_flows.py:{flow}", targets=[TARGETS["sm_90a"]], to="page").programs[
        "sm_90a"
    ]
    measured = json.loads((ROOT / "bench/results/h200" / file).read_text())["rows"]
    budget = Budget(8 if file == "steps.json" else 27)
    for row in measured:
        if row["flow"] == flow and row["requests"] in rows and row["tokens"] == 32763:
            step = Step(8 * row["requests"], row["tokens"], budget)
            found = {c.kernel: c for c in kernel_costs(program, Spec(), step, H200)}["select"]
            assert found.read == pytest.approx(1e6 * row["MB"][0], rel=0.01)
            assert found.microseconds == pytest.approx(row["select_us"], rel=0.25), row
            assert found.times.limiter == "memory"
