"""Fields of pages beside fields of their blocks in GPU kernels under the emulator: as the page interpreter has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.batches import batch, copy, require_selections, summarise
from tests.cuda.harness import Kernels, dtype_of, fails, loaded, lower, tensors
from tests.cuda.test_append import interpret
from tests.flow.pages_and_blocks import FLOWS
from vortex.budget import Budget
from vortex.codegen.cuda import plan
from vortex.codegen.cuda.select import kernel
from vortex.codegen.cuda.select.page_lookup import PageLookup
from vortex.codegen.cuda.work_list import part_pages
from vortex.codegen.tir import T, tirx
from vortex.codegen.values import Values
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.types import S
from vortex.passes.manager import PassContext, run_pipeline
from vortex.spec import Spec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SPECS = {
    "Pyramid": Spec(page_size=16, block_size=4, head_dim=32, group=2, dtype="bf16"),
    "Exact": Spec(page_size=24, block_size=8, head_dim=64, group=2, dtype="bf16", kv_dtype="fp8_e4m3"),
    "Beside": Spec(page_size=32, block_size=16, head_dim=64, group=4, dtype="f16"),
    "Wide": Spec(page_size=32, block_size=8, head_dim=64, group=4, dtype="bf16"),
    "pyramid": Spec(page_size=64, block_size=16, head_dim=32, group=2, dtype="bf16"),
    "twilight": Spec(page_size=64, block_size=16, head_dim=32, group=2, dtype="bf16"),
}
SCALES = {"k": 0.5, "v": 2.0}
FLOW_PASSES = "canonicalize,cse,split-bound,reassociate,move-scales,canonicalize,cse,dce"


@cache
def flow_of(name: str) -> Module:
    return trace(FLOWS[name] if name in FLOWS else find_flow(str(EXAMPLES / f"{name}.py")), SPECS[name])


@cache
def kernels() -> Kernels:
    return Kernels.of({n: lower(flow_of(n), append={"threads": 64}) for n in FLOWS}, ["append"])


@cache
def choosing(name: str, chip_words: int) -> Kernels:
    flow = run_pipeline(flow_of(name), FLOW_PASSES, PassContext(None))
    knobs = {"threads": 64, "in_flight": 2, "chip_words": chip_words}
    return Kernels.of({name: lower(flow, plan={"threads": 64, "select_pages": 32}, select=knobs)}, ["plan", "select"])


def steps(page: int, block: int) -> dict[str, tuple[list[int], list[int]]]:
    """Lengths, and how many of the tokens are new: pages that fill at once, block by block, and by one token."""
    lengths = [2 * page + block + 1, 0, block, 4 * page, 2 * page, page + block, page - 1]
    return {
        "prefill": (lengths, lengths),
        "decode": (lengths, [1, 0, 1, 1, 1, 1, 1]),
        "chunks": (lengths, [page + 3, 0, block - 1, 2 * page + 1, block, 2, 1]),
    }


def check_append(made: Kernels, name: str, step: str, seed: int, *, stored: bool) -> None:
    spec = SPECS[name]
    lengths, new = steps(spec.page_size, spec.block_size)[step]
    scales = SCALES if spec.scaled else None
    b = batch(flow_of(name), lengths, new=new, stored=stored, seed=seed, scales=scales)
    want = copy(b)
    given = tensors(made, name, b)
    made.run(name, given, ["append"], seed=seed)
    program = made.programs[name]
    interpret(program, want)
    for d in program.declared("buffer"):
        if d.name in want.paged:
            key = d.name if d.attrs["role"] == "pool" else f"field.{d.name}"
            have = loaded(given[key], dtype_of(program, d.name))
            np.testing.assert_array_equal(have, want.paged[d.name], err_msg=d.name)


@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored"])
@pytest.mark.parametrize("step", ["prefill", "decode", "chunks"])
@pytest.mark.parametrize("name", FLOWS)
def test_append_equals_the_interpreter(name: str, step: str, stored: bool) -> None:
    for seed in (0, 1):
        check_append(kernels(), name, step, seed, stored=stored)


BUDGETS = (Budget(3, sink=1, recent=1), Budget(2, "1/3", sink=5, recent=6), Budget(0, sink=0, recent=4))


def check_select(built: Kernels, name: str, budget: Budget, *, slots: int, seed: int) -> None:
    """The blocks that the flow interpreter selects, in all rows."""
    spec, module = SPECS[name], flow_of(name)
    page, block = spec.page_size, spec.block_size
    lengths = [120 * page + 3, 0, 5, 40 * page, 9 * page + block + 1, 3 * page, 2 * page - 1]
    scales = SCALES if spec.scaled else None
    b = batch(module, lengths, budget=budget, stored=True, seed=seed, scales=scales)
    summarise(module, b)
    given = tensors(built, name, b, slots=slots)
    built.run(name, given, ["plan", "select"], seed=seed)
    require_selections(module, b, given, name, budget, slots, seed)
    assert not given["arrivals"].any()


@pytest.mark.parametrize("slots", [1, 24], ids=["one item a row", "items meet"])
@pytest.mark.parametrize("name", FLOWS)
def test_selection_equals_the_interpreter(name: str, slots: int) -> None:
    for seed, budget in enumerate(BUDGETS):
        check_select(choosing(name, 2048), name, budget, slots=slots, seed=seed)


@pytest.mark.parametrize("name", ["pyramid", pytest.param("twilight", marks=pytest.mark.full)])
def test_examples(name: str) -> None:
    for slots, budget in zip((1, 24), BUDGETS, strict=False):
        check_select(choosing(name, 4096), name, budget, slots=slots, seed=slots)


@pytest.mark.parametrize("name", ["Exact", *(pytest.param(n, marks=pytest.mark.full) for n in FLOWS if n != "Exact")])
def test_rows_that_do_not_fit_on_chip(name: str) -> None:
    check_select(choosing(name, 0), name, BUDGETS[0], slots=8, seed=2)


def _another_block(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Values._block_of
    monkeypatch.setattr(Values, "_block_of", lambda self, o, i: right(self, o, T.bitwise_or(i, tirx.const(1, i.ty))))


def _the_place_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PageLookup.record
    monkeypatch.setattr(PageLookup, "record", lambda self, axis, physical: right(self, S, physical))


def _candidates_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PageLookup.physical
    monkeypatch.setattr(PageLookup, "physical", lambda self, axis, at: right(self, S, at))


def _items_that_share_a_page_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    def unaligned(pages: Any, item: Any, blocks: int = 1) -> Any:
        return part_pages(pages, item)

    for module in (plan, kernel):
        monkeypatch.setattr(module, "part_pages", unaligned)
    monkeypatch.setattr(plan._SelectCut, "__init__", lambda self, blocks: vars(self).update(blocks=1, quantum=32))


PLANTED = (_another_block, _the_place_of_a_block, _candidates_counted_in_blocks, _items_that_share_a_page_tile)


@pytest.mark.parametrize("fault", PLANTED, ids=lambda f: f.__name__)
def test_planted_faults_are_seen(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as planted:
        fault(planted)
        name = "Beside" if fault is _items_that_share_a_page_tile else "Exact"  # it has a sum over pages
        wrong = choosing.__wrapped__(name, 2048)
    # with so many slots an item has half a page tile of pages
    assert any(fails(lambda b=b: check_select(wrong, name, b, slots=24, seed=1)) for b in BUDGETS[:2])
