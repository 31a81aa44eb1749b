"""Parameters, the head and tables in kernels for GPUs, under the emulator: the interpreter's pages and summaries."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.batches import batch, copy, oracle_selection, summarise
from tests.cuda.harness import Kernels, dtype_of, fails, loaded, lower, tensors
from tests.flow.everywhere import Everywhere
from vortex.budget import Budget
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.interpret_page import run_program
from vortex.spec import Spec

SPEC = Spec(page_size=8, head_dim=32, group=2)
LENGTHS = (8 * 45 + 3, 0, 5, 8 * 9 + 1, 8 * 4, 8 * 5)
FLOWS = ("everywhere", "learned_query", "mlp_scorer")
KINDS = ("plan", "append", "select")


@cache
def flow_of(name: str) -> Module:
    return trace(Everywhere if name == "everywhere" else find_flow(name), SPEC)


@cache
def kernels(name: str) -> Kernels:
    knobs = {"threads": 64, "in_flight": 2, "chip_words": 2048}
    program = lower(flow_of(name), plan={"threads": 64, "select_pages": 32}, select=knobs)
    return Kernels.of({name: program}, KINDS)


def check(name: str, built: Kernels, seed: int, slots: int) -> None:
    flow = flow_of(name)
    b = batch(flow, LENGTHS, budget=Budget(3), heads=3, seed=seed)
    want = copy(b)
    counts = run_program(built.programs[name], want)
    summarise(flow, want)
    given = tensors(built, name, b, slots=slots)
    built.run(name, given, KINDS, seed=seed)
    for d in built.programs[name].declared("buffer"):
        if d.attrs["role"] == "field":
            have = loaded(given[f"field.{d.name}"], dtype_of(built.programs[name], d.name))
            np.testing.assert_allclose(have, want.paged[d.name], rtol=1e-2, atol=1e-5, err_msg=d.name)
    for r, h in b.rows():
        have = given["pages"][r, h, : given["counts"][r, h]].tolist()
        assert have == oracle_selection(flow, want, r, h) == want.pages[r, h, : want.counts[r, h]].tolist()
    rows = sum(int(n) > 0 for n in want.plan[3]) * b.heads
    for d in built.programs[name].declared("param"):
        used = any(d.name in o.attrs.values() for o in built.programs[name].functions["select"].ops)
        size = d.type.numel * d.type.dtype.bytes  # type: ignore[union-attr]
        assert counts.of("select", d.name).read == used * rows * size


@pytest.mark.parametrize("slots", [1, 8], ids=["one item a row", "items meet"])
@pytest.mark.parametrize("name", FLOWS)
def test_pages_and_summaries_are_the_interpreters(name: str, slots: int) -> None:
    check(name, kernels(name), seed=slots, slots=slots)


def test_rows_have_budgets_of_their_own() -> None:
    flow = trace(find_flow("block_topk"), Spec(page_size=8, head_dim=32, group=2, budget_table=True))
    program = lower(flow, plan={"threads": 64, "select_pages": 32}, select={"threads": 64, "chip_words": 2048})
    built = Kernels.of({"block_topk": program}, KINDS)
    for seed, slots in ((1, 1), (2, 8)):
        b = batch(flow, LENGTHS, budget=Budget(table=[[3, 0, 9]]), heads=3, seed=seed)
        b.row_budget = np.array([3, 0, 9])
        want = copy(b)
        run_program(program, want)
        given = tensors(built, "block_topk", b, slots=slots)
        built.run("block_topk", given, KINDS, seed=seed)
        for r, h in b.rows():
            have = given["pages"][r, h, : given["counts"][r, h]].tolist()
            assert have == want.pages[r, h, : want.counts[r, h]].tolist() == oracle_selection(flow, want, r, h)
            assert len(have) == min(-(-LENGTHS[r] // 8), 3 + int(b.row_budget[h]))


def test_the_set_of_another_head_is_noticed() -> None:
    built = kernels("everywhere")
    for kind in ("append", "select"):
        source = next(s for s in built.sources.values() if s.kind == kind)
        text = built.texts[source.symbol]
        assert "head_offset" in text
        assert fails(
            check, "everywhere", built.mutated(source.symbol, text.replace("head_offset +", "1 + head_offset +")), 1, 1
        )
