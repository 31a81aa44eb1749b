"""What a step costs: bytes of baselines by hand, those of flows by the interpreter, times beside measured ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from vortex.budget import Budget
from vortex.check.step_bytes import count_step
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.evaluate.cost import Workload, bytes_of_flow, cost_of_baseline, cost_of_flow
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.schedules.arithmetic import Arithmetic
from vortex.spec import Spec
from vortex.targets.roofline import LAUNCH
from vortex.targets.target import TARGETS

ROOT = Path(__file__).resolve().parents[2]
SMALL = Workload(batch=2, tokens=1024, kv_heads=3, spec=Spec(head_dim=64, group=2))


class Sizes(vortex.vFlow):
    """Computes with keys in fp8 before they are multiplied."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"keys": vortex.Field(spec.page_size, spec.head_dim, dtype="fp8_e4m3")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"keys": page.k}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.keys.abs() @ q.T).amax((1, 2)))


@pytest.mark.parametrize(("dtype", "each"), [("bf16", 0), ("fp8_e4m3", 1), ("int4", 1)])
def test_narrow_fields_are_converted_for_tensor_cores(dtype: str, each: int) -> None:
    """Numbers in bf16 are multiplied as they lie."""

    scale = () if dtype == "int4" else None

    class Keys(vortex.vFlow):
        def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
            return {"keys": vortex.Field(spec.page_size, spec.head_dim, dtype=dtype, scale=scale)}

        def forward_cache(self, page: Any) -> dict[str, Any]:
            return {"keys": page.k}

        def forward_indexer(self, q: Any, cache: Any) -> Any:
            return vortex.topk(torch.einsum("gd,std->sgt", q, cache.keys).amax((1, 2)))

    program = compile_flow(trace(Keys, Spec()), targets=[TARGETS["sm_90a"]], to="page").programs["sm_90a"]
    work = Arithmetic.of(program, program.functions["select"])
    assert work.conversions == each * 16 * 128 + (dtype == "int4")  # and its scale
    assert not [o for o in work.counted if o.name == "flow.dot"]


def test_bytes_of_baselines_by_hand() -> None:
    rows, page = 6, 16 * 64 * 2
    io = 2 * 64 * 2 * 2 + 2 * 4  # q, out and lse of a row
    new = 2 * 64 * 2 * 2  # a token's K and V, read and stored
    assert cost_of_baseline("dense", 0, SMALL).bytes == rows * (64 * 2 * page + io + new)
    for rule in ("random", "recent"):
        assert cost_of_baseline(rule, 4, SMALL).bytes == rows * (7 * 2 * page + io + new)
    assert cost_of_baseline("oracle", 4, SMALL).bytes == rows * (64 * page + 2 * 64 * 2 + 7 * 2 * page + io + new)
    # no more pages than there are
    assert cost_of_baseline("recent", 1000, SMALL).bytes == cost_of_baseline("dense", 0, SMALL).bytes


def test_bytes_of_a_flow_are_those_of_the_interpreter() -> None:
    quest = find_flow("quest")
    costs = cost_of_flow(quest, [4, 16], SMALL)
    program = compile_flow(trace(quest, SMALL.spec), targets=[TARGETS["sm_90a"]], to="page").programs["sm_90a"]
    for budget, cost in costs.items():
        steps = count_step(program, SMALL.spec, SMALL.tokens, Budget(budget))
        assert cost.bytes == pytest.approx(6 * sum(s.total for s in steps if s.kernel != "plan"))
        assert set(cost.kernels) == {"append", "select", "attend"}
    assert costs[16].kernels["attend"] - costs[4].kernels["attend"] == pytest.approx(6 * 12 * (2 * 16 * 64 * 2 + 4))


@pytest.mark.parametrize("flow", ["quest", "mass"])
def test_bytes_are_the_same_without_kernels_for_a_gpu(flow: str) -> None:
    """Rows of 24 + 8 numbers are none that kernels of a GPU take."""
    costs = cost_of_flow(find_flow(flow), [4, 16], SMALL)
    assert bytes_of_flow(find_flow(flow), [4, 16], SMALL) == {k: pytest.approx(c.bytes) for k, c in costs.items()}
    odd = Workload(1, 256, 1, Spec(head_dim=32, group=4, kv_lora_rank=24))
    assert bytes_of_flow(find_flow("latent_topk"), [1], odd)[1] < cost_of_baseline("dense", 0, odd).bytes


def test_attend_of_a_baseline_is_that_of_a_flow_but_for_the_list_of_pages() -> None:
    flow = cost_of_flow(find_flow("quest"), [4], SMALL)[4].kernels["attend"]
    assert flow - cost_of_baseline("recent", 4, SMALL).kernels["attend"] == 6 * (7 * 4 + 4)


def test_time_is_launches_and_bytes() -> None:
    cost = cost_of_baseline("dense", 0, SMALL)
    assert cost.microseconds == pytest.approx(1e6 * (2 * LAUNCH + cost.bytes / 4.3e12))
    slow = cost_of_flow(Sizes, [4], Workload())[4]
    assert slow.microseconds > 1.2e6 * (3 * LAUNCH + slow.bytes / 4.3e12), "no contraction of tensor cores"
    assert cost_of_baseline("dense", 0, Workload(target="sm_100a")).microseconds < 1e6 * 4.3e9 / 4.3e12


def test_predicted_times_are_near_measured_ones() -> None:
    measured = json.loads((ROOT / "bench/results/h200/layer.json").read_text())["rows"]
    for row in measured:
        at = Workload(batch=row["requests"], tokens=row["tokens"])
        told = cost_of_flow(find_flow(row["flow"]), [27], at)[27].microseconds
        assert told == pytest.approx(row["layer_us"], rel=0.15), row


def test_latent_rows_are_read_once() -> None:
    at = Workload(batch=1, tokens=512, kv_heads=1, spec=Spec.of_latent())
    dense = cost_of_baseline("dense", 0, at)
    assert dense.kernels["attend"] == 512 * 576 * 2 + 128 * (576 + 512) * 2 + 4 * 128
    assert cost_of_flow(find_flow("latent_topk"), [4], at)[4].bytes < dense.bytes


@pytest.mark.parametrize("wrong", [{"target": "cpu"}, {"batch": 0}, {"tokens": 0}])
def test_wrong_workloads_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(VortexError, match="of costs"):
        Workload(**wrong)  # type: ignore[arg-type]
