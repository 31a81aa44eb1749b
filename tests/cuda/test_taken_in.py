"""Launches of ``select`` that take in a step's new tokens, under the emulator: the pools and summaries of a launch of
``append``, byte for byte, the pages of ``select`` alone, and no race between the CTAs that do the one and the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.batches import batch, require_selections, summarise
from tests.cuda import harness
from tests.cuda.harness import APPENDED, H200, Kernels, emitted, fails, lower, tensors
from tests.flow import pages_and_blocks
from tests.flow.everywhere import Everywhere
from tests.narrow_flows import FLOWS as NARROW
from tests.state.flows import Ema
from vortex.budget import Budget
from vortex.codegen.cuda.append import Appending
from vortex.codegen.tir import i32
from vortex.errors import VortexError
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.interpret_page import Batch
from vortex.passes.manager import PassContext, run_pipeline
from vortex.spec import Spec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FLOW_PASSES = "canonicalize,cse,split-bound,reassociate,move-scales,canonicalize,cse,drop-monotone,dce"
SPEC = Spec(page_size=8, head_dim=32, group=2)
CASES: dict[str, tuple[Any, Spec]] = {
    "quest": ("quest", SPEC),
    "quest_then_exact": (str(EXAMPLES / "quest_then_exact.py"), SPEC),
    "latent_topk": ("latent_topk", Spec.of_latent("64+64", 4, page_size=8)),
    "pyramid": (pages_and_blocks.Pyramid, Spec(page_size=16, block_size=4, head_dim=32, group=2)),
    "exact_fp8": (pages_and_blocks.Exact, Spec(page_size=24, block_size=8, head_dim=64, kv_dtype="fp8_e4m3")),
    "masked_quest_in_blocks": ("masked_quest", Spec(page_size=64, block_size=16, head_dim=32, group=2)),
    "everywhere": (Everywhere, SPEC),
    "mass": ("mass", SPEC),
    "codes": (NARROW["Codes"], Spec(page_size=8, head_dim=64, group=2)),
}
"""Rows of pools beside summaries, MLA, pages in blocks with and without summaries of both, K and V in fp8, parameters
and constants, codes of 4 bits.
"""
SCALES = {"k": 0.5, "v": 2.0}
FEW = ("quest", "quest_then_exact", "latent_topk", "exact_fp8")
MORE = [*FEW, *(pytest.param(n, marks=pytest.mark.full) for n in CASES if n not in FEW)]
KINDS = ("plan", "append", "select")
BUDGETS = (Budget(3, sink=1, recent=1), Budget(2, "1/8", sink=0, recent=2))


@cache
def flow_of(name: str) -> Module:
    made, spec = CASES[name]
    return trace(find_flow(made) if isinstance(made, str) else made, spec)


@cache
def kernels(name: str) -> Kernels:
    program = run_pipeline(flow_of(name), FLOW_PASSES, PassContext(None))
    knobs = {"threads": 64, "chip_words": 2048}
    plan = {"threads": 64, "select_pages": 32, "attend_pages": 4}
    return Kernels.of({name: lower(program, plan=plan, append={"threads": 64}, select=knobs)}, KINDS)


def step(name: str, budget: Budget, seed: int, *, stored: bool) -> Batch:
    """A token of each request, with which some pages and blocks of pages are full; a row of padding, which counts a
    token as well. Pages that were full before have their summaries.
    """
    flow, spec = flow_of(name), CASES[name][1]
    size, block = spec.page_size, spec.block_size or spec.page_size
    lengths = [70 * size + 3, 0, 5, 40 * size, 9 * size + block + 1, 4 * size, 3 * size + block, 1, size]
    new = [int(n > 0) for n in lengths]
    scales, heads = SCALES if spec.scaled else None, 1 if spec.kv_lora_rank else 2
    b = batch(flow, lengths, heads=heads, budget=budget, new=new, stored=stored, seed=seed, scales=scales)
    summarise(flow, replace(b, lengths=b.lengths - np.array(new, np.int32)))
    b.row_offsets = np.arange(len(lengths) + 1, dtype=np.int32)
    if not stored:
        b.tokens = {n: np.insert(x, 1, np.nan, axis=0) for n, x in b.tokens.items()}
        b.loc = np.insert(b.loc, 1, -1)
    return b


def memory(program: Module, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The bytes of pools and summaries."""
    held = {d.name: d.name if d.attrs["role"] == "pool" else f"field.{d.name}" for d in program.declared("buffer")}
    return {n: given[key].contiguous().view(torch.uint8).clone() for n, key in held.items() if key in given}


def launched(built: Kernels, name: str, b: Batch, kinds: tuple[str, ...], **how: Any) -> dict[str, Any]:
    """The arguments after these launches, in memory of their own."""
    given = {n: x.clone() if isinstance(x, torch.Tensor) else x for n, x in tensors(built, name, b, slots=12).items()}
    built.run(name, given, kinds, **how)
    assert not given["arrivals"].any()
    return given


def pages_of(given: dict[str, Any]) -> list[list[int]]:
    pages, counts = given["pages"].flatten(0, 1), given["counts"].flatten().tolist()
    return [row[:n].tolist() for row, n in zip(pages, counts, strict=True)]


def check(built: Kernels, name: str, *, stored: bool, seeds: range = range(3)) -> None:
    """As ``append`` and then ``select``, and as ``select`` without ``append``."""
    program = built.programs[name]
    for seed in seeds:
        b = step(name, BUDGETS[seed % 2], seed, stored=stored)
        before = memory(program, tensors(built, name, b))
        apart = launched(built, name, b, KINDS, seed=seed)
        alone = launched(built, name, b, ("plan", "select"), seed=seed)
        taken = launched(built, name, b, ("plan", "select"), seed=seed, takes_in=True)
        want, have, untouched = (memory(program, x) for x in (apart, taken, alone))
        for n, x in want.items():
            assert torch.equal(have[n], x), f"{n}: as append leaves it"
            assert torch.equal(untouched[n], before[n]), f"{n}: row_offsets of one number take in nothing"
        assert any(not torch.equal(x, before[n]) for n, x in want.items())
        assert pages_of(taken) == pages_of(apart) == pages_of(alone)
        summarise(flow_of(name), b)
        require_selections(flow_of(name), b, taken, name, seed)


@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored"])
@pytest.mark.parametrize("name", MORE)
def test_it_is_append_and_select(name: str, stored: bool) -> None:
    check(kernels(name), name, stored=stored)


def test_the_first_of_several_kernels_takes_them_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow that keeps much of each page between sweeps is selected by several kernels, one after the other."""
    apart = harness.PAGE_PIPELINE.replace("fuse,", "fuse{max-live=1},")
    monkeypatch.setattr(harness, "PAGE_PIPELINE", apart)
    program = run_pipeline(flow_of("mass"), FLOW_PASSES, PassContext(None))
    built = Kernels.of({"mass": lower(program, plan={"threads": 64}, append={"threads": 64})}, KINDS)
    selects = [s for s in built.sources.values() if s.kind == "select"]
    assert ["row_offsets" in s.args for s in selects] == [True] + [False] * (len(selects) - 1)
    assert len(selects) > 1
    check(built, "mass", stored=False, seeds=range(1))


def test_tokens_are_taken_in_where_nothing_is_scored() -> None:
    """Steps between two selections of ``decode(every=)`` have a work list of no items."""
    b = step("quest", BUDGETS[0], 0, stored=False)
    given = launched(kernels("quest"), "quest", b, ("plan",))
    given["work"][:, 0] = 0
    program = kernels("quest").programs["quest"]
    kernels("quest").run("quest", given, ("select",), takes_in=True)
    want = launched(kernels("quest"), "quest", b, ("plan", "append"))
    assert all(torch.equal(x, memory(program, want)[n]) for n, x in memory(program, given).items())
    assert given["counts"].eq(-7).all()


def mutant(old: str, new: str) -> Callable[[], Kernels]:
    """Text of the CTAs that take in tokens, in which the first ``old`` is another."""

    def made() -> Kernels:
        built = kernels("quest")
        symbol = built.sources["quest", "select"].symbol
        text = built.texts[symbol]
        (begin,) = re.finditer(APPENDED, text)
        assert old in text[begin.end() :]
        return built.mutated(symbol, text[: begin.end()] + text[begin.end() :].replace(old, new, 1))

    return made


def the_first_head_alone() -> Kernels:
    right = Appending.emit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Appending, "emit", lambda self, tokens, h, *of: right(self, tokens, i32(0) * h, *of))
        return kernels.__wrapped__("quest")


def test_planted_faults_are_seen() -> None:
    check(kernels("quest"), "quest", stored=False, seeds=range(1))
    for fault in (
        mutant("for (int turn = 0;", "for (int turn = 1;"),  # none of the pages of a row
        mutant("tvm_builtin_cuda_cta_sync();", ""),  # between the tokens of a page and its summary
        the_first_head_alone,
    ):
        built = fault()
        assert fails(lambda x=built: check(x, "quest", stored=False, seeds=range(2))), fault


@pytest.mark.parametrize("name", ["quest", "quest_then_exact"])
def test_the_last_page_has_to_be_reserved(name: str) -> None:
    """A budget that reserves nothing would have ``select`` score a page that other CTAs write: the emulator sees the
    race, and no budget says so.
    """
    built, b = kernels(name), step(name, BUDGETS[0], 0, stored=False)
    b.budget = (*b.budget[:2], 0, *b.budget[3:])
    launched(built, name, b, ("plan", "select"))
    with pytest.raises(RuntimeError, match="with nothing between them that orders the two"):
        launched(built, name, b, ("plan", "select"), takes_in=True)
    with pytest.raises(VortexError, match="recent"):
        Budget(3, recent=0)


def test_a_flow_with_state_takes_in_nothing() -> None:
    program = lower(trace(Ema, SPEC))
    sources, _ = emitted({"ema": program}, ("append", "select"), H200)
    assert "row_offsets" in sources["ema", "append"].args
    assert all("row_offsets" not in s.args for s in sources.values() if s.kind == "select")
