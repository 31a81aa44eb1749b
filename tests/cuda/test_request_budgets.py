"""Budgets of requests' own in kernels for GPUs, emulated: the interpreter's pages, and lists for all of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.batches import batch, copy, oracle_selection
from tests.cuda.harness import Kernels, fails, lower, tensors
from tests.cuda.test_decoder import BUDGET, HKV, KNOBS, MOST, TAPE, Eight, Run, library
from tests.cuda.test_decoder import SPEC as DECODED
from tests.kernels.test_request_budgets import FLOWS, rows_of
from vortex.budget import EVERY_PAGE, Budget
from vortex.codegen.budgets import KEPT, PAGES, SCORED
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.interpret_page import run_program
from vortex.runtime.decoder import Decoder
from vortex.spec import Spec

SPEC = Spec(page_size=8, head_dim=32, group=2, request_budgets=True)
LENGTHS = (8 * 45 + 3, 0, 5, 8 * 19 + 1, 8 * 45, 8 * 5, 8 * 45 + 1)
OWN = (
    None,
    Budget(9),
    Budget(1),
    Budget(0, "1/4"),
    EVERY_PAGE,
    Budget(1, sink=0, recent=1),
    Budget(7, sink=2, recent=3),
)
MANY = 40
"""Requests that one warp has no lanes for."""
KINDS = ("plan", "append", "select")


@cache
def flow_of(name: str) -> Module:
    return trace(FLOWS[name](), SPEC)


@cache
def kernels(name: str) -> Kernels:
    program = lower(flow_of(name), plan={"threads": 64, "select_pages": 32}, select={"threads": 64, "chip_words": 2048})
    return Kernels.of({name: program}, KINDS)


def check(name: str, built: Kernels, slots: int, requests: int = len(LENGTHS)) -> None:
    flow = flow_of(name)
    lengths, own = ([*some] * requests for some in (LENGTHS, OWN))
    b = batch(flow, lengths[:requests], budget=Budget(60), heads=1 if requests > len(LENGTHS) else 2, seed=slots)
    b.budget, b.request_budget = Budget(3).numbers(), rows_of(own[:requests]).numpy()
    run_program(built.programs[name], want := copy(b))
    given = tensors(built, name, b, slots=slots)
    built.run(name, given, KINDS, seed=slots)
    found = given["plan"].numpy()
    for row in (PAGES, KEPT, SCORED):  # where none is scored nobody asks for the first
        np.testing.assert_array_equal(found[row], want.plan[row])
    for r, h in b.rows():
        have = given["pages"][r, h, : given["counts"][r, h]].tolist()
        assert have == want.pages[r, h, : want.counts[r, h]].tolist() == oracle_selection(flow, want, r, h)
        if own[r] is EVERY_PAGE:
            assert have == list(range(-(-lengths[r] // 8)))


@pytest.mark.parametrize("slots", [1, 8], ids=["one item a row", "items meet"])
@pytest.mark.parametrize("name", FLOWS)
def test_each_request_keeps_what_its_budget_says(name: str, slots: int) -> None:
    check(name, kernels(name), slots)


def test_many_requests_have_theirs() -> None:
    check("topk", kernels("topk"), 8, MANY)


def test_the_budget_of_another_request_is_noticed() -> None:
    built = kernels("topk")
    symbol = next(s.symbol for s in built.sources.values() if s.kind == "plan")
    text = built.texts[symbol]
    name = next(word for word in ("request_budget_ptr", "request_budget") if f"{word}[" in text)
    assert fails(check, "topk", built.mutated(symbol, text.replace(f"{name}[(", f"{name}[5 + (", 1)), 1)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_graph_follows_what_requests_choose(deterministic: bool) -> None:
    """Captured where none has a budget of its own; replayed with budgets and lengths that were not known then."""
    made = torch.Generator().manual_seed(0)
    spec = replace(DECODED, request_budgets=True)
    built = Kernels.of(
        {"quest": lower(trace(find_flow("quest"), spec), **KNOBS)}, ("plan", "append", "select", "attend")
    )
    more: dict[str, Any] = {"largest": EVERY_PAGE, "dense": True, "deterministic": deterministic}
    decoder = Decoder(library("quest", built), budget=BUDGET, **more)
    device = decoder.library.device
    assert isinstance(device, Eight)
    run = Run("quest", decoder)
    pools = run.fill(made)
    decoder.reserve(3, 81)
    lengths, own = torch.ones(3, dtype=torch.int32), rows_of([None] * 3)
    table = torch.randperm(160, generator=made).int()[None, :81].repeat(3, 1)  # kernels only read: all share pages
    q = torch.randint(-3, 4, (3, HKV * spec.group, spec.head_dim), generator=made).bfloat16()
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2])
    TAPE.clear()
    device.recording = True
    decoder.plan(lengths, table, budgets=own)
    decoder.decode(0, q, out=out, lse=lse)
    device.recording = False
    graph = [*TAPE[:1], *TAPE[-2:]]  # between them the plan of layers that keep all pages
    for tokens, chosen in (
        ([MOST, 400, MOST], (EVERY_PAGE, Budget(9), None)),
        ([1, MOST, 0], (Budget(0), Budget(0, "1/2"), EVERY_PAGE)),
        ([MOST, MOST, 300], (None, Budget(1, sink=2, recent=2), Budget(20))),
    ):
        lengths.copy_(torch.tensor(tokens))
        own.copy_(rows_of(chosen))
        out.fill_(float("nan"))
        for launch in graph:
            launch()
        for row, n in enumerate(tokens):
            if not n:
                assert not out[row].any()
                continue
            at = torch.arange(n)
            k, v = (x[table[row, at // 8].long(), :, at % 8] for x in pools)
            want = oracle.step(find_flow("quest"), spec, q[row], k, v, chosen[row] or BUDGET)
            torch.testing.assert_close(out[row].float(), want.out, rtol=2e-2, atol=2e-2)
            torch.testing.assert_close(lse[row], want.lse, rtol=1e-3, atol=1e-3)
    few = torch.empty_like(q)
    decoder.plan(lengths, table, budgets=rows_of([Budget(0)] * 3))
    decoder.decode(0, q, out=few)
    decoder.attend_all(1, q, out=out)
    for row, n in enumerate(tokens):
        at = torch.arange(n)
        k, v = (x[table[row, at // 8].long(), :, at % 8] for x in pools)
        heads = [q[row, h * spec.group : (h + 1) * spec.group] for h in range(HKV)]
        dense = torch.cat([oracle.attend(x, k[:, h], v[:, h], spec.head_dim**-0.5)[0] for h, x in enumerate(heads)])
        torch.testing.assert_close(out[row].float(), dense, rtol=2e-2, atol=2e-2)
        assert not torch.equal(few[row], out[row])
