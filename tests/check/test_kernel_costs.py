"""What kernels cost: times by hand, and limiters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from vortex.budget import Budget
from vortex.check.kernel_costs import Compiled, KernelCost, Step, kernel_costs, layer_microseconds
from vortex.driver import compile_flow
from vortex.ir.core import Module
from vortex.schedules.later_sweeps import LaterSweeps
from vortex.spec import Spec
from vortex.targets.gpu import H200
from vortex.targets.roofline import CLUSTER_WAIT, FAR_WORD, KEPT_WORD, LAUNCH, LIST, LISTED_PAGE, Demand, Times
from vortex.targets.target import TARGETS
from vortex.tune.choose import defaults

ROOT = Path(__file__).resolve().parents[2]


def test_times_are_work_over_rates() -> None:
    """An H200 has 132 SMs of 128 lanes at 1.7 GHz, copies at 4.3 TB/s, and its memory is 0.8 us away."""
    times = Times.of(
        Demand(4.3e9, scalar=1e9, flops=6.2e10, spilled=1e8, in_flight=132 * 4096, lists=2, listed=100), H200
    )
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
    assert times.seconds == pytest.approx(LAUNCH + 2 * LIST + 100 * LISTED_PAGE + times.by_resource["latency"] + on_top)
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


def test_the_last_cta_of_a_row_chooses_alone() -> None:
    """A word of each page is chosen by; two steps choose twice, and then go over a list."""
    plain, steps = (_select(f"{ROOT}/{path}", 32768) for path in ("vortex/flow/library/quest.py", STEPS))
    assert plain.times.fixed == pytest.approx(LAUNCH + 2045 * KEPT_WORD)
    assert steps.times.fixed == pytest.approx(LAUNCH + 2045 * KEPT_WORD + LIST + 64 * LISTED_PAGE)
    assert (plain.like.form, steps.like.form) == ("", "of shortlists")


def test_what_was_compiled_without_tensor_cores_is_scalar() -> None:
    """As mass_fp8 on 26 November 2026: its contraction outlasts its bytes."""
    took = {"threads": 256, "warps": 8, "spills": 236, "ctas": 1}
    compiled = {"select": Compiled({}, took, tensor_cores=False)}
    found = _select(f"{ROOT}/bench/language_flows.py:mass_fp8", 32763, compiled)
    assert found.times.limiter == "scalar arithmetic"
    assert found.worth is not None and found.worth.off
    assert "2.40 times as long as predicted" in found.worth.text


STEPS = "examples/quest_then_mass.py"
LONG = "bench/language_flows.py:bounds_then_mass_408"
WAITS = 2 * CLUSTER_WAIT
"""Behind the sweep over candidates and that over the list; the third reads what was kept of the list."""


def test_the_ctas_of_a_cluster_share_what_they_read_and_each_chooses() -> None:
    """Eight page tiles of 8 pages; the keys of all candidates are gone over by each CTA."""
    few, many = (_variant(STEPS, batch) for batch in (1, 8))
    assert (few.cluster, many.cluster) == (8, 1)
    assert few.times.fixed == pytest.approx(LAUNCH + 2045 * KEPT_WORD + LIST + 8 * LISTED_PAGE + WAITS)
    assert many.times.fixed == pytest.approx(LAUNCH + 2045 * KEPT_WORD + LIST + 64 * LISTED_PAGE)
    assert (few.like.form, many.like.form) == ("of shortlists in clusters", "of shortlists")
    assert few.as_json()["cluster"] == 8
    assert few.ir == many.ir


def test_of_a_row_beyond_shared_memory_few_keys_are_read() -> None:
    """8192 words have room there; predictions are near what such rows took, where few pages are kept."""
    program = compile_flow("quest", targets=[TARGETS["sm_90a"]], to="page").programs["sm_90a"]
    long = [
        row
        for row in json.loads((ROOT / "bench/results/h200/long_kept.json").read_text())["rows"]
        if row["kept"] <= 61 and row["tokens"] > 262144
    ]
    assert len(long) == 6
    for row in long:
        pages = -(-row["tokens"] // 16) - 3
        later = LaterSweeps.of(program, program.functions["select"], pages, 1, 2048)
        assert (later.chosen_from, later.far) == (8192, pages - 8192)
        work = Demand(row["MB"][0] * 1e6, kept_words=later.chosen_from, far_words=later.far)
        times = Times.of(work, H200)
        assert times.fixed == pytest.approx(LAUNCH + 8192 * KEPT_WORD + (pages - 8192) * FAR_WORD)
        assert times.seconds * 1e6 == pytest.approx(row["select_us"], rel=0.25), row


def test_what_is_kept_of_candidates_is_shared_and_what_is_of_a_list_is_not() -> None:
    """Four scores of each candidate, and the key; of a long list four scores that shared memory does not hold."""
    mass = _variant("mass", 1)
    assert mass.times.fixed == pytest.approx(LAUNCH + 2045 * KEPT_WORD * (1 + 4 / 8) + WAITS)
    for batch, cluster, pages in ((1, 8, 2 * 32), (8, 2, 7 * 32), (32, 1, 408)):
        found = _variant(LONG, batch)
        assert found.cluster == cluster
        words = (2045 + 408 * 4) * KEPT_WORD
        waits = WAITS if cluster > 1 else 0
        assert found.times.fixed == pytest.approx(LAUNCH + words + LIST + pages * LISTED_PAGE + waits)


def test_a_cluster_has_few_ctas_and_these_have_little_under_way() -> None:
    """64 CTAs of 12 warps, whether or not ptxas said what they take."""
    few = _variant(STEPS, 1).times
    schedule = {"cluster": 8, "threads": 384, "residents": 1, "bytes_in_flight": 384 * 64 * 4, "flops_per_byte": 1.0}
    took = {"threads": 384, "ctas": 1, "warps": 12}
    demand = Demand.of_bytes(1e7, schedule, took, H200, 64)
    assert (demand.in_flight, demand.warps) == (64 * 384 * 64 * 4, pytest.approx(12 * 64 / 132))
    assert few.by_resource["latency"] > 0
    assert _variant(STEPS, 8).times.by_resource["latency"] == 0
    serving = {**schedule, "serves": ((2, 512, 8), (8, 512, 8))}
    assert Demand.of_bytes(1e7, serving, took, H200) == demand, "of a kernel for 8 rows and fewer"
    assert Demand.of_bytes(1e7, schedule, took, H200).in_flight == 132 * 384 * 64 * 4


def test_the_knobs_that_a_database_or_an_artifact_has_are_those_that_run() -> None:
    program = _with_variants(STEPS)
    schedule = {**program.functions["select"].attrs["schedule"], "cluster": 4}
    made = kernel_costs(program, Spec(), Step(8, 32768, Budget(8)), H200, {"select": Compiled(schedule)})
    found = next(c for c in made if c.kernel == "select")
    assert found.cluster == 4
    assert found.times.fixed == pytest.approx(LAUNCH + 2045 * KEPT_WORD + LIST + 16 * LISTED_PAGE + WAITS)


def _variant(flow: str, batch: int) -> KernelCost:
    """Of a select that is compiled with all its defaults, for 32K tokens."""
    made = kernel_costs(_with_variants(flow), Spec(), Step(8 * batch, 32768, Budget(8)), H200)
    return next(c for c in made if c.kernel == "select")


def _with_variants(flow: str) -> Module:
    where = f"{ROOT}/{flow}" if ".py" in flow else flow
    return compile_flow(where, targets=[TARGETS["sm_90a"]], to="page", choose=defaults()).programs["sm_90a"]


def _select(flow: str, tokens: int, compiled: Mapping[str, Compiled] | None = None) -> KernelCost:
    """Of 32 requests."""
    program = compile_flow(flow, targets=[TARGETS["sm_90a"]], to="page").programs["sm_90a"]
    made = kernel_costs(program, Spec(), Step(256, tokens, Budget(27)), H200, compiled)
    return next(c for c in made if c.kernel == "select")


@pytest.mark.parametrize(
    ("flow", "has_state"), [("vortex/flow/library/quest.py", False), ("examples/query_ema.py", True)]
)
def test_a_layer_has_a_launch_of_append_only_where_nobody_takes_it_in(flow: str, has_state: bool) -> None:
    program = compile_flow(f"{ROOT}/{flow}", targets=[TARGETS["sm_90a"]], to="page").programs["sm_90a"]
    made = kernel_costs(program, Spec(), Step(256, 4096, Budget(16)), H200)
    times = {c.kernel: c.microseconds for c in made}
    assert set(times) == {"plan", "append", "select", "attend"}
    launch = 3 if has_state else 0
    moved = times["append"] - 3
    assert layer_microseconds(program, made) == pytest.approx(launch + moved + times["select"] + times["attend"])
