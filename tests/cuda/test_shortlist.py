"""``select`` of flows in two and three steps on a GPU, under the emulator: shortlists, what is read at their pages by
the page table (fields and the rows of the pools), and selections among them, as the flow does it that runs eagerly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from tests.batches import batch, candidates, summarise
from tests.cuda.harness import Kernels, lower, tensors
from tests.flow.shortlists import Both, Latent, Linear, ThreeSteps, TwoSteps
from vortex.budget import Budget
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.dialects import page
from vortex.ir.dialects.flow import cap_of
from vortex.ir.interpret_page import Batch, plan_row
from vortex.passes.manager import PassContext, run_pipeline
from vortex.spec import Spec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FLOW_PASSES = "canonicalize,cse,split-bound,reassociate,drop-monotone,dce"
KINDS = ("plan", "select")
SIZES = (0, 1, 2, 33, 300)
"""Candidates of a row."""


class Ties(Linear):
    """Scores of which many are equal, at both steps; a list longer than a thread's share of keys."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        near = vortex.shortlist((cache.lo[:, 0] > 0).float(), pages=90)
        return vortex.topk((cache.k[near][:, :, 0].amax(1) > 3).float())


class Shares(TwoSteps):
    """A share of the mass among the shortlist's pages, and the best of all pages by another score."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        near = vortex.shortlist(cache.hi @ q[0], pages=7)
        mass = cache.k[near].abs().sum((1, 2))
        return vortex.union(vortex.topp(mass, 0.75, pages=5), vortex.topk(cache.lo @ q[0], pages=3))


class Values(TwoSteps):
    """Raw V of the shortlist, after statistics over its pages and a list of page numbers."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        near = vortex.shortlist((cache.lo + cache.hi) @ q[0], pages=40)
        largest = cache.v[near].amax(1)  # [S1, head_dim]
        centred = largest.sum(-1) - largest.sum(-1).amax(0) + vortex.page_index()[near] % 4
        return vortex.topk(centred + (cache.hi[near] * q.sum(0)).sum(-1).cumsum(0))


FLOWS = {f.__name__: f for f in (TwoSteps, Linear, ThreeSteps, Both, Ties, Shares, Values, Latent)}
SPECS = {
    "TwoSteps": Spec(page_size=16, head_dim=32, group=4, dtype="bf16"),
    "Linear": Spec(page_size=8, head_dim=32, group=2, dtype="bf16", kv_dtype="fp8_e4m3"),
    "ThreeSteps": Spec(page_size=4, head_dim=16, group=1, dtype="f32"),
    "Both": Spec(page_size=4, head_dim=16, group=2, dtype="f16"),
    "Ties": Spec(page_size=4, head_dim=16, group=1, dtype="bf16"),
    "Shares": Spec(page_size=4, head_dim=16, group=1, dtype="bf16"),
    "Values": Spec(page_size=4, head_dim=16, group=2, dtype="bf16"),
    "Latent": Spec(page_size=4, head_dim=128, group=4, dtype="bf16", kv_lora_rank=64),
    "quest_then_mass": Spec(page_size=8, head_dim=32, group=4, dtype="bf16"),
    "quest_then_exact": Spec(page_size=8, head_dim=32, group=2, dtype="bf16"),
}
BLOCKS = Spec(page_size=64, block_size=16, head_dim=32, group=2, dtype="bf16")
FEW = ("ThreeSteps", "quest_then_exact")
MORE = [*FEW, *(pytest.param(n, marks=pytest.mark.full) for n in SPECS if n not in FEW)]
BUDGETS = (Budget(3, sink=1, recent=2), Budget(2, "1/3", sink=2, recent=1), Budget(0, sink=0, recent=1))
"""The second one wants more pages of a long row than most of the shortlists have."""


def cls_of(name: str) -> Any:
    return FLOWS[name] if name in FLOWS else find_flow(str(EXAMPLES / f"{name}.py"))


@cache
def flow_of(name: str, spec: Spec) -> Module:
    return run_pipeline(trace(cls_of(name), spec), FLOW_PASSES, PassContext(None))


@cache
def kernels(name: str, spec: Spec, chip_words: int = 4096, keys: int = 8) -> Kernels:
    knobs = {"threads": 64, "chip_words": chip_words, "keys": keys}
    program = lower(flow_of(name, spec), plan={"threads": 64, "select_pages": 64, "attend_pages": 4}, select=knobs)
    return Kernels.of({name: program}, KINDS)


def lengths(spec: Spec, budget: Budget, sizes: Sequence[int]) -> list[int]:
    """Tokens of rows that have so many candidates, the last page partial in every other row."""
    block = spec.block_size or spec.page_size
    return [(n + budget.sink + budget.recent) * block - (i % 2) for i, n in enumerate(sizes)]


def eager(name: str, spec: Spec, b: Batch, r: int, h: int, budget: Budget) -> list[int]:
    """The pages (or blocks) of a row, by the flow run on torch tensors."""
    flow = flow_of(name, spec)
    n, _, first, scored = plan_row(int(b.lengths[r]), page.block_size(flow), b.budget, cap_of(flow))
    if not scored:
        return list(range(n))
    held = candidates(flow, b, r, h, first, scored)
    group = b.q.shape[1] // b.heads
    q, fields = torch.from_numpy(b.q[r, h * group : (h + 1) * group]), {f: torch.from_numpy(x) for f, x in held.items()}
    chosen = oracle.selection(cls_of(name), spec, q, fields, first_page=first, pages=scored)
    return oracle.select_pages(chosen, n, budget)


def check(
    name: str, spec: Spec, budget: Budget, sizes: Sequence[int] = SIZES, *, slots: int, seed: int,
    built: Kernels | None = None, integers: bool = True, nhd: bool = False,
) -> None:  # fmt: skip
    """All rows against the flow on torch tensors; what is not to be read is NaN, and so is the workspace."""
    flow, built = flow_of(name, spec), built or kernels(name, spec)
    scales = {"k": 0.5, "v": 2.0} if spec.kv_dtype == "fp8_e4m3" else {}
    heads = 1 if spec.kv_lora_rank else 2
    b = batch(
        flow, [0, *lengths(spec, budget, sizes)], heads=heads, budget=budget, stored=True, integers=integers, seed=seed,
        scales=scales,
    )  # fmt: skip
    summarise(flow, b)
    given = tensors(built, name, b, slots=slots)
    for pool in ("k", "v", "latent"):
        if nhd and pool in given:
            given[pool] = given[pool].transpose(1, 2).contiguous().transpose(1, 2)
    built.run(name, given, KINDS, seed=seed)
    for r in range(b.requests):
        for h in range(b.heads):
            have = given["pages"][r, h, : given["counts"][r, h]].tolist()
            assert have == eager(name, spec, b, r, h, budget), (name, r, h, budget, slots, seed)
    assert not given["arrivals"].any()


@pytest.mark.parametrize("slots", [1, 8], ids=["one item a row", "items meet"])
@pytest.mark.parametrize("name", MORE)
def test_steps_equal_the_flow_run_eagerly(name: str, slots: int) -> None:
    for seed, budget in enumerate(BUDGETS):
        check(name, SPECS[name], budget, slots=slots, seed=seed, nhd=seed == 1)


@pytest.mark.parametrize("name", ["Linear", *(pytest.param(n, marks=pytest.mark.full) for n in ("Values", "Shares"))])
def test_blocks_of_a_page(name: str) -> None:
    for seed, (slots, budget) in enumerate(zip((1, 8), BUDGETS, strict=False)):
        check(name, BLOCKS, budget, slots=slots, seed=seed, nhd=seed == 1)


@pytest.mark.full
@pytest.mark.parametrize("name", ["ThreeSteps", "Ties", "Shares", "quest_then_mass"])
def test_rows_of_more_keys_than_registers_in_the_workspace(name: str) -> None:
    built = kernels(name, SPECS[name], 0, 1)
    for slots in (1, 8):
        check(name, SPECS[name], BUDGETS[0], slots=slots, seed=5, built=built)


@pytest.mark.full
def test_random_numbers() -> None:
    for name in ("TwoSteps", "quest_then_mass", "quest_then_exact"):
        for seed in range(4):
            check(name, SPECS[name], BUDGETS[seed % 3], slots=1 + 7 * (seed % 2), seed=seed, integers=False)
