"""Every barrier and counter of the plan, append and select kernels is needed: without it the emulator reports a race
or a result is wrong. Those of attend have their test beside its other tests.
"""

from __future__ import annotations

import re
from copy import deepcopy
from functools import cache

import pytest

from tests.batches import batch, require_selections, summarise
from tests.cuda.harness import APPENDED, Kernels, fails, lower, tensors
from tests.cuda.test_append import SPEC, flow_of, interpret
from vortex.budget import Budget
from vortex.ir.interpret_page import Batch

STEPS = re.compile(
    r"^ *(tvm_builtin_cuda_cta_sync\(\);|tvm_builtin_cuda_warp_sync\(\);|arrivals_ptr\[.*\] = 0;)\n", re.MULTILINE
)
NAME = "gqa_block"


@cache
def whole() -> Kernels:
    knobs = {"threads": 64, "in_flight": 1, "chip_words": 1024, "keys": 1}
    program = lower(flow_of(NAME), plan={"threads": 64, "select_pages": 32}, append={"threads": 64}, select=knobs)
    return Kernels.of({NAME: program})


def steps(seed: int) -> list[tuple[Batch, int]]:
    """Batches that go every way between them, each with the slots it is planned for."""
    flow, size = flow_of(NAME), SPEC.page_size
    # where the engine has stored the tokens, one CTA summarises all pages of a row
    prefill = batch(flow, [size * 70 + 3, 0, size * 9, size * 33], budget=Budget(4), stored=seed == 2, seed=seed)
    # more are wanted than the shortlist has room for, first of different scores and then of equal ones
    many = [batch(flow, [size * 140 + 3], heads=1, budget=Budget(70), stored=True, seed=seed) for _ in range(2)]
    many[1].paged["k"][:] = 1
    # few of more pages than registers hold, which several CTAs score
    few = batch(flow, [size * 140 + 3], heads=1, budget=Budget(2), stored=True, seed=seed)
    return [(prefill, 1 + 7 * (seed % 2)), (many[0], 4), (many[1], 1), (few, 4)]


def long_steps() -> list[tuple[Batch, int]]:
    """Rows of more keys than fit on chip: what bounds their best is searched among greatest keys, or in a sample, or
    more are wanted than have a bound, and than the CTA has bits for.
    """
    flow, size = flow_of(NAME), SPEC.page_size
    kept = ((1400, 20), (1500, 45), (2500, 190))
    return [(batch(flow, [size * n], heads=1, budget=Budget(k), stored=True, seed=n), 16) for n, k in kept]


@cache
def all_steps() -> list[tuple[Batch, Batch, int]]:
    """Each as it is given to kernels, and with what is to come of it."""
    raw = [*(step for seed in range(3) for step in steps(seed)), *long_steps()]
    after = deepcopy(raw)
    for b, _ in after:
        interpret(whole().programs[NAME], b)
        summarise(flow_of(NAME), b)
    return [(given, b, slots) for (given, slots), (b, _) in zip(raw, after, strict=True)]


@cache
def requests() -> Batch:
    """More requests than a warp has lanes, and than the CTA of plan has threads."""
    size = SPEC.page_size
    return batch(flow_of(NAME), [size * 9, 0, 5, size * 40] * 18, heads=1, budget=Budget(4), stored=True)


def planned(kernels: Kernels, seed: int) -> list[list[list[int]]]:
    """Budgets and work lists of those requests, which slots are too few for."""
    given = tensors(kernels, NAME, requests(), slots=9)
    kernels.run(NAME, given, ("plan",), seed=seed)
    items = given["work"][:, 0].tolist()
    return [given["plan"].tolist(), [row[: 2 + n].tolist() for row, n in zip(given["work"], items, strict=True)]]


def check(kernels: Kernels) -> None:
    """Many requests are planned, and a prefill, twice over, comes out right in several orders of execution."""
    for seed in range(3):
        assert planned(kernels, seed) == planned(whole(), 0)
    for at, (raw, b, slots) in enumerate(all_steps()):
        given = tensors(kernels, NAME, raw, slots=slots)  # bf16 there: a copy
        given["arrivals"][:] = 9  # plan clears what an aborted step left behind
        for _ in range(2):
            kernels.run(NAME, given, ("plan", "append", "select"), seed=at)
        require_selections(flow_of(NAME), b, given, at)
        assert not given["arrivals"].any(), at


def test_it_works_as_it_is() -> None:
    check(whole())


# in the emulator, as on the GPUs so far, a shuffle orders a warp's shared memory; CUDA does not promise it
SPARED = {"plan": 1, "select": 1}
"""Warp barriers that may go unnoticed, by kernel."""


@pytest.mark.parametrize(
    ("kind", "every"),
    [
        *(("plan", 8), ("append", 1), ("select", 8)),
        *(pytest.param(kind, 3, marks=pytest.mark.full) for kind in ("plan", "select")),
        *(pytest.param(kind, 1, marks=[pytest.mark.full, pytest.mark.release]) for kind in ("plan", "select")),
    ],
)
def test_no_barrier_can_go(kind: str, every: int) -> None:
    check(whole())
    symbol = whole().sources[NAME, kind].symbol
    text = whole().texts[symbol]
    found = list(STEPS.finditer(text.partition(APPENDED)[0]))
    assert len(found) >= 2, "the pattern no longer finds this kernel's barriers"
    needless = []
    for n, step in list(enumerate(found))[::every]:
        before = text[: step.start()].rsplit("\n", 4)[-4:]
        mutant = whole().mutated(symbol, text[: step.start()] + text[step.end() :])
        if not fails(check, mutant):
            needless.append((n, step.group(1), before))
    spared = [n for n in needless if "warp_sync" in n[1]]
    assert len(spared) <= SPARED.get(kind, 0), spared
    assert len(needless) == len(spared), needless
