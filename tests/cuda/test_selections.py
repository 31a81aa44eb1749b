"""Selections of a GPU that depend on scores, under the emulator: shares of a mass, counts, unions."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import vortex
from tests.batches import batch, oracle_selection, summarise
from tests.cuda.harness import Kernels, lower, tensors
from tests.kernels import test_selections as flows
from vortex.budget import Budget
from vortex.flow.trace import trace
from vortex.ir.core import Module

KINDS = ("plan", "select")
SPEC = vortex.Spec(page_size=4, head_dim=16, group=1, dtype="f32")
EVERYDAY = (flows.Share, flows.Three)
REST = (flows.AllMass, flows.Two, flows.Counted, flows.PerLayer, flows.Own, flows.Late)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-39, 2.0, 3.4e38, -3.4e38, 1.0], np.float32)


@cache
def flow_of(flow: type[vortex.vFlow]) -> Module:
    return trace(flow, SPEC)


@cache
def kernels(of: tuple[type[vortex.vFlow], ...], chip_words: int = 2048, keys: int = 8) -> Kernels:
    knobs = {"threads": 64, "chip_words": chip_words, "keys": keys}
    plan = {"threads": 64, "select_pages": 64, "attend_pages": 4}
    return Kernels.of({f.__name__: lower(flow_of(f), plan=plan, select=knobs) for f in of}, KINDS)


def numbers(kind: str, pages: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "whole":
        return rng.integers(-2, 9, pages).astype(np.float32)
    if kind == "odd":
        return rng.choice(SPECIAL, pages)
    if kind == "even":
        return np.full(pages, 4 + 2.0**-21, np.float32)  # the last bit of a key decides
    return (rng.random(pages) * np.exp2(rng.integers(-40, 3, pages))).astype(np.float32)


def check(built: Kernels, flow: type[vortex.vFlow], kind: str, budget: Budget, *, slots: int, seed: int) -> None:
    module, rng = flow_of(flow), np.random.default_rng(seed)
    b = batch(module, [0, 1, 4, 13, 4 * 33, 4 * 300 - 1], heads=1, budget=budget, stored=True, seed=seed)
    b.layer = seed
    summarise(module, b)
    for name in ("a", "b"):
        for r, length in enumerate(b.lengths):
            full = b.page_table[r, : length // 4]
            b.paged[name][full, 0] = numbers(kind, len(full), rng)
    given = tensors(built, flow.__name__, b, slots=slots)
    built.run(flow.__name__, given, KINDS, seed=seed)
    for r in range(b.requests):
        have = given["pages"][r, 0, : given["counts"][r, 0]].tolist()
        assert have == oracle_selection(module, b, r, 0), (kind, r, budget, slots)
        work = given["work"][1].tolist()
        listed = sum(item >> 16 == r for item in work[2 : 2 + work[0]])
        assert listed * work[1] >= len(have), "the list of attend has items for all pages"
    assert not given["arrivals"].any()


@pytest.mark.parametrize("flow", [*EVERYDAY, *(pytest.param(f, marks=pytest.mark.full) for f in REST)])
def test_selection_equals_the_interpreter(flow: type[vortex.vFlow]) -> None:
    built = kernels(EVERYDAY if flow in EVERYDAY else REST)
    for seed, kind in enumerate(("whole", "odd", "even", "random")):
        if flow in (flows.Counted, flows.Late) and kind != "whole":
            continue  # the order of a sum of other numbers may decide
        for slots, budget in (
            (1, Budget(4)),
            (8, Budget(1, "1/3", sink=2, recent=1)),
            (8, Budget(0, sink=0, recent=1)),
        ):
            check(built, flow, kind, budget, slots=slots, seed=seed)


@pytest.mark.full
@pytest.mark.parametrize("flow", [flows.Share, flows.Three])
def test_rows_of_more_keys_than_registers_in_the_workspace(flow: type[vortex.vFlow]) -> None:
    for seed, kind in enumerate(("whole", "random")):
        check(kernels((flows.Share, flows.Three), 0, 2), flow, kind, Budget(9), slots=1 + 7 * seed, seed=seed)
