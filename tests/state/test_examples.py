"""The examples with state: what their own code gives, step by step, and the formulas that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.state.test_kernels import Compiled
from tests.state.traffic import HEADS, SPEC, Interpreted, Traffic, live
from vortex.budget import Budget
from vortex.driver import compile_flow
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.passes.manager import PassContext, run_pipeline
from vortex.runtime.decoder import load

EXAMPLES = Path(__file__).parents[2] / "examples"
Tensor = torch.Tensor


def running_average(steps: list[Tensor], queries: list[Tensor], mean: Tensor, size: Tensor) -> Tensor:
    return sum((0.5 ** (len(steps) - 1 - t) * s for t, s in enumerate(steps)), torch.zeros(len(mean)))


def velocity(steps: list[Tensor], queries: list[Tensor], mean: Tensor, size: Tensor) -> Tensor:
    return steps[-1] - (0.5 * steps[-2] if len(steps) > 1 else 0)


def variance(steps: list[Tensor], queries: list[Tensor], mean: Tensor, size: Tensor) -> Tensor:
    weights = torch.tensor([0.3 * 0.7 ** (len(steps) - 1 - t) for t in range(len(steps))])
    table = torch.stack(steps)
    return steps[-1] + 0.5 * ((weights @ table.square()) - (weights @ table).square())


def query_ema(steps: list[Tensor], queries: list[Tensor], mean: Tensor, size: Tensor) -> Tensor:
    return mean @ sum(
        (0.3 * 0.7 ** (len(queries) - 1 - t) * x for t, x in enumerate(queries)), torch.zeros(len(queries[0]))
    )


def value_norm(steps: list[Tensor], queries: list[Tensor], mean: Tensor, size: Tensor) -> Tensor:
    return steps[-1] * size * (1 - 0.95 ** len(steps))


FORMULAS: dict[str, Any] = {
    "running_avg_block_sparse": running_average,
    "score_velocity": velocity,
    "cross_step_variance": variance,
    "query_ema": query_ema,
    "running_value_norm": value_norm,
}


def flow_of(name: str) -> Any:
    return find_flow(str(EXAMPLES / f"{name}.py"))


@pytest.mark.parametrize("name", FORMULAS)
def test_examples_are_the_formulas(name: str) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 20 * SPEC.page_size, HEADS, SPEC.head_dim).bfloat16().float()
    state = oracle.RequestState(flow_of(name), SPEC, HEADS)
    pages = slice(1, 18)
    means, sizes = k.unflatten(0, (20, -1)).mean(1).bfloat16().float(), v.norm(dim=-1).unflatten(0, (20, -1)).mean(1)
    queries: list[list[Tensor]] = [[] for _ in range(HEADS)]
    for _ in range(21):
        q = torch.randn(HEADS * SPEC.group, SPEC.head_dim)
        got = oracle.step(flow_of(name), SPEC, q, k, v, Budget(3), state=state)
        for h in range(HEADS):
            queries[h].append(q[h * SPEC.group : (h + 1) * SPEC.group].mean(0))
            mean = means[pages, h]
            want = FORMULAS[name]([mean @ x for x in queries[h]], queries[h], mean, sizes[pages, h])
            scores = got.scores[h]
            assert scores is not None
            torch.testing.assert_close(scores, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FORMULAS)
def test_examples_interpreted(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().partition("@vortex")[2].splitlines()) <= 15
    traffic = Traffic(flow_of(name), Budget(2), seed=4)
    program = run_pipeline(traffic.module, "outline,expand-softmax,fuse,plan-memory,schedule", PassContext(None))
    live(traffic, Interpreted(traffic, program))


@pytest.mark.parametrize(
    "name", ["running_avg_block_sparse", *(pytest.param(n, marks=pytest.mark.full) for n in list(FORMULAS)[1:])]
)
def test_examples_compiled(name: str, tmp_path: Path) -> None:
    traffic = Traffic(flow_of(name), Budget(2), seed=5)
    made = compile_flow(flow_of(name), spec=SPEC, out=tmp_path / "flow.vxa")
    assert made.artifact is not None
    live(traffic, Compiled(traffic, load(made.artifact, budget=traffic.budget, debug=True)))
