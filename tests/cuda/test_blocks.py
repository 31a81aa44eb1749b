"""Blocks of pages on a GPU, under the emulator: narrow fields, selections that count, budgets by ratio and by row."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import vortex
from tests.batches import batch, require_selections, summarise
from tests.cuda import test_narrow as narrow
from tests.cuda.harness import Kernels, fails, lower, tensors
from tests.kernels import test_selections as selections
from tests.narrow_flows import FLOWS
from vortex.budget import Budget
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.passes.manager import PassContext, run_pipeline
from vortex.spec import Spec

SPEC = Spec(page_size=32, block_size=8, head_dim=64, group=2)
ROWS = Spec(page_size=24, block_size=8, head_dim=32, group=2, budget_table=True)
LENGTHS = (8 * 69 + 3, 0, 5, 8 * 33, 8 * 9 + 1, 32)
STEPS = {
    "prefill": (LENGTHS, LENGTHS),
    "decode": (LENGTHS, (1, 0, 1, 1, 1, 1)),
    "chunks": ((8 * 69 + 3, 0, 5, 8 * 33, 8 * 9 + 1, 32), (8 * 9 + 5, 0, 2, 8, 33, 9)),
}
FLOW_PASSES = "canonicalize,cse,reassociate,move-scales,canonicalize,cse,dce"
FEW = ("PerGroup", "Bits")
BUDGETS = (Budget(4), Budget(1, "1/3", sink=3, recent=5), Budget(0, sink=0, recent=1))


@cache
def flow_of(name: str) -> Module:
    if name in FLOWS:
        return trace(FLOWS[name], SPEC)
    if name == "rows":
        return trace(find_flow("block_topk"), ROWS)
    return trace(getattr(selections, name), Spec(page_size=16, block_size=4, head_dim=16, group=1, dtype="f32"))


@cache
def kernels(name: str) -> Kernels:
    flow = run_pipeline(flow_of(name), FLOW_PASSES, PassContext(None))
    knobs = {"threads": 64, "in_flight": 2, "chip_words": 2048}
    program = lower(flow, append={"threads": 64}, plan={"threads": 64, "select_pages": 32}, select=knobs)
    return Kernels.of({name: program}, ["plan", "append", "select"])


def check_append(built: Kernels, name: str, step: str, seed: int) -> None:
    lengths, new = STEPS[step]
    b = batch(flow_of(name), lengths, new=new, seed=seed, integers=seed == 0)
    for have in narrow.check_append(built, name, b, seed).values():
        assert have.shape[2] == SPEC.page_blocks


def check_select(built: Kernels, name: str, budget: Budget, *, slots: int, seed: int) -> None:
    module = flow_of(name)
    b = batch(module, LENGTHS, budget=budget, stored=True, seed=seed)
    if budget.table:
        b.row_budget = np.array([budget.row(0, h) for h in range(b.heads)], np.int32)
    summarise(module, b)
    given = tensors(built, name, b, slots=slots)
    built.run(name, given, ["plan", "select"], seed=seed)
    require_selections(module, b, given, name, budget, seed)
    assert not given["arrivals"].any()


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(n, marks=pytest.mark.full) for n in FLOWS if n not in FEW)])
def test_narrow_fields(name: str) -> None:
    """Codes, their scales and bits are packed block by block, and scored where they lie."""
    for step in STEPS:
        check_append(kernels(name), name, step, 0)
    check_append(kernels(name), name, "chunks", 1)
    for seed, slots in ((0, 1), (1, 8)):
        check_select(kernels(name), name, BUDGETS[0], slots=slots, seed=seed)


@pytest.mark.parametrize("name", [pytest.param("Share", marks=pytest.mark.full), "Three"])
def test_selections_that_count(name: str) -> None:
    for seed, budget in enumerate(BUDGETS):
        check_select(kernels(name), name, budget, slots=(1, 8, 8)[seed], seed=seed)


def test_rows_have_budgets_of_their_own() -> None:
    assert vortex.Budget(table=[[2, 9]]).row(0, 1) == 9
    for seed, table in enumerate(([[2, 9]], [[0, 40]], [[7, 1]])):
        check_select(kernels("rows"), "rows", Budget(table=table), slots=(1, 8, 8)[seed], seed=seed)


PLANTED = {
    "the block of another page": ("append", " & 3", " & 1"),
    "the summary of another block": ("select", " & 3", " & 1"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_seen(fault: str) -> None:
    kind, here, there = PLANTED[fault]
    good = kernels("PerGroup")
    (symbol,) = (s.symbol for (_, n), s in good.sources.items() if n == kind)
    text = good.texts[symbol]
    assert here in text, "the text has the block of a page"
    wrong = good.mutated(symbol, text.replace(here, there))

    def check() -> None:
        if kind == "append":
            check_append(wrong, "PerGroup", "prefill", 0)
        else:
            check_select(wrong, "PerGroup", BUDGETS[0], slots=1, seed=0)

    assert fails(check)
