"""``plan`` and ``select`` for GPUs under the emulator: the pages that the flow interpreter picks, and no races."""

from __future__ import annotations

from functools import cache

import pytest

from tests.batches import batch, require_selections, summarise
from tests.cuda.harness import Kernels, lower, tensors
from vortex.budget import Budget
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.spec import Spec

SPEC = Spec(page_size=8, head_dim=32, group=2)
LENGTHS = (8 * 100 + 3, 0, 5, 8 * 40, 8 * 9 + 1, 8 * 7)
KINDS = ("plan", "select")


@cache
def flow_of(name: str) -> Module:
    return trace(find_flow(name), SPEC)


@cache
def kernels(name: str, chip_words: int) -> Kernels:
    knobs = {"threads": 64, "in_flight": 2, "chip_words": chip_words}
    program = lower(flow_of(name), plan={"threads": 64, "select_pages": 32}, select=knobs)
    return Kernels.of({name: program}, KINDS)


def check(name: str, built: Kernels, lengths: tuple[int, ...], *, slots: int, seed: int) -> None:
    """All rows against the interpreter; scores of random numbers may tie only where the flow makes ties."""
    flow = flow_of(name)
    b = batch(flow, lengths, budget=Budget(4), stored=True, seed=seed)
    summarise(flow, b)
    given = tensors(built, name, b, slots=slots)
    built.run(name, given, KINDS, seed=seed)
    require_selections(flow, b, given, name, slots, seed)
    assert not given["arrivals"].any()


EVERYDAY = ("block_topk", "quest", "gqa_block")
REST = ("centered", "lserve", "lserve_centroid", "masked_quest", "venergy_gated")


@pytest.mark.parametrize("slots", [1, 8], ids=["one item a row", "items meet"])
@pytest.mark.parametrize("name", [*EVERYDAY, *(pytest.param(n, marks=pytest.mark.full) for n in REST)])
def test_selection_equals_the_interpreter(name: str, slots: int) -> None:
    for seed in (0, 1):
        check(name, kernels(name, 2048), LENGTHS, slots=slots, seed=seed)


@pytest.mark.parametrize(
    "name", ["gqa_block", *(pytest.param(n, marks=pytest.mark.full) for n in (*EVERYDAY[:2], *REST))]
)
def test_rows_that_do_not_fit_on_chip(name: str) -> None:
    check(name, kernels(name, 0), LENGTHS, slots=1, seed=2)


def test_a_captured_grid_serves_all_lengths() -> None:
    built = kernels("gqa_block", 2048)
    for lengths in ((1, 1, 1), (900, 700, 333), (1, 1, 1), (0, 8 * 64, 0)):
        check("gqa_block", built, lengths, slots=8, seed=3)
