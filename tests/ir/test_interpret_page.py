"""Page programs: what they compute, and the bytes that prove what fusion saves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.batches import batch, copy, oracle_selection, summarise
from tests.ir.samples import CENTERED, GQA_BLOCK, QUEST, head
from vortex.budget import Budget
from vortex.errors import VortexError
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.dialects import page
from vortex.ir.interpret_page import Batch, Counts, plan_row, run_program
from vortex.ir.numerics import narrow
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.types import DTYPES
from vortex.ir.verify import verify
from vortex.passes.manager import PassContext, run_pipeline
from vortex.spec import Spec

SIMPLIFY = "canonicalize,cse,reassociate,drop-monotone,canonicalize,cse,dce"
FUSED = "outline,expand-softmax,fuse,cse,dce"
LENGTHS = [0, 1, 15, 16, 17, 100, 160, 161, 500]


def run(flow: Module, passes: str, b: Batch) -> tuple[Batch, Counts, Module]:
    program = run_pipeline(flow, passes, PassContext())
    b = copy(b)
    return b, run_program(program, b), program


def selects(program: Module) -> list[str]:
    return [f.name for f in program.functions.values() if f.attrs["kind"] == "select"]


def check(flow: Module, b: Batch) -> None:
    """Fields, selections and outputs agree with the flow interpreter and torch."""
    want = copy(b)
    want.paged["k"], want.paged["v"] = b.paged["k"].copy(), b.paged["v"].copy()
    summarise(flow, want)
    for d in flow.declared("field"):
        np.testing.assert_array_equal(b.paged[d.name], want.paged[d.name])
    size, group = int(flow.attrs["page_size"]), b.q.shape[1] // b.heads
    for r, h in b.rows():
        pages = b.pages[r, h, : b.counts[r, h]].tolist()
        assert pages == oracle_selection(flow, want, r, h)
        block = page.block_size(flow)
        tokens = [p * block + i for p in pages for i in range(block) if p * block + i < b.lengths[r]]
        slots = [(int(b.page_table[r, t // size]), t % size) for t in tokens]
        for g in range(h * group, (h + 1) * group):
            if not tokens:
                assert not b.out[r, g].any()
                assert b.lse[r, g] == -np.inf
                continue
            k, v = (
                torch.from_numpy(np.stack([b.paged[n][p, h, i] for p, i in slots]) * b.scale_of(n)) for n in ("k", "v")
            )
            s = k.double() @ torch.from_numpy(b.q[r, g]).double() * b.scale
            torch.testing.assert_close(
                torch.from_numpy(b.out[r, g]).double(), s.softmax(0) @ v.double(), rtol=2e-2, atol=2e-2
            )
            assert float(b.lse[r, g]) == pytest.approx(float(s.logsumexp(0)), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("text", [QUEST, GQA_BLOCK, CENTERED], ids=["quest", "gqa_block", "centered"])
@pytest.mark.parametrize("passes", ["outline", FUSED, f"{SIMPLIFY},{FUSED}"], ids=["outlined", "fused", "all"])
def test_programs_agree_with_the_flow(text: str, passes: str) -> None:
    flow = parse_module(text)
    b, _, _ = run(flow, passes, batch(flow, LENGTHS))
    check(flow, b)


@pytest.mark.parametrize("passes", ["outline", f"{SIMPLIFY},{FUSED}"], ids=["outlined", "all"])
def test_pools_in_fp8_are_multiples_of_a_scale(passes: str) -> None:
    flow = trace(find_flow("venergy_gated"), Spec(page_size=16, head_dim=8, kv_dtype="fp8_e4m3"))
    given = batch(flow, LENGTHS, integers=False, scales={"k": 0.3, "v": 0.004})
    b, counts, program = run(flow, passes, given)
    check(flow, b)
    assert {d.name for d in program.declared("buffer") if page.scaled(d)} == {"k", "v"}
    tokens = sum(LENGTHS) * b.heads * 8
    assert counts.buffer("k_new").read == 2 * counts.buffer("k").written == 2 * tokens
    for name, scale in b.scales.items():
        stored = b.paged[name][np.isfinite(b.paged[name])]
        np.testing.assert_array_equal(narrow(stored, DTYPES["fp8_e4m3"]), stored)
        assert (np.abs(stored) == 448).any() == (scale == 0.004)
    with pytest.raises(VortexError, match=r"VX200[68]"):
        verify(parse_module(print_module(program).replace(": f32[16, 8]", ": bf16[16, 8]")))


def test_one_page_at_a_time_and_stored_by_the_engine() -> None:
    flow = parse_module(QUEST)
    b, _, _ = run(flow, FUSED, batch(flow, [16, 32, 33, 64], new=[1, 1, 1, 3]))
    size = 16
    for r, length in enumerate(b.lengths):
        filled = {int(p) for p in b.page_table[r, (int(length) - (1, 1, 1, 3)[r]) // size : int(length) // size]}
        for p in b.page_table[r, : length // size]:
            assert np.isfinite(b.paged["lo"][p]).all() == (int(p) in filled)
    b, counts, _ = run(flow, FUSED, batch(flow, LENGTHS, stored=True))
    check(flow, b)
    assert counts.buffer("k_new").read == 0


@pytest.mark.parametrize("passes", ["outline", FUSED])
@pytest.mark.parametrize("name", ["quest", "venergy_gated"])
def test_blocks_of_pages(name: str, passes: str) -> None:
    """The flow's meaning, and the bytes of pages as small as the blocks."""
    whole = Spec(page_size=24, block_size=8, head_dim=16, group=2, dtype="f32")
    flow, small = (trace(find_flow(name), s) for s in (whole, whole.in_blocks))
    lengths, new = [0, 1, 23, 24, 25, 160, 161], [0, 1, 9, 8, 2, 160, 1]
    b = batch(flow, lengths, new=new)
    summarise(flow, b)
    done, counts, _ = run(flow, passes, b)
    check(flow, done)
    _, other, _ = run(small, passes, batch(small, lengths, new=new))
    assert (counts.read, counts.written, counts.scratch) == (other.read, other.written, other.scratch)


def test_plan_rows() -> None:
    budget = Budget(4, ratio="1/4", sink=1, recent=2).numbers()
    assert plan_row(0, 16, budget) == (0, 0, 1, 0)
    assert plan_row(7 * 16, 16, budget) == (7, 7, 1, 0)
    assert plan_row(7 * 16 + 1, 16, budget) == (8, 7, 1, 5)
    assert plan_row(40 * 16, 16, budget) == (40, 10, 1, 37)


@pytest.mark.parametrize("text", [GQA_BLOCK, CENTERED], ids=["gqa_block", "centered"])
@pytest.mark.parametrize("passes", [FUSED, f"{SIMPLIFY},{FUSED}"], ids=["fused", "all"])
def test_one_select_kernel_reads_summaries_once(text: str, passes: str) -> None:
    """Softmax over pages then max over heads, and a score minus its mean: one kernel, one read, no workspace."""
    flow = parse_module(text)
    base = batch(flow, LENGTHS)
    one, counts, program = run(flow, passes, base)
    apart, unfused, outlined = run(flow, "outline", base)
    assert selects(program) == ["select"]
    assert len(selects(outlined)) > 1
    assert counts.launches == 4
    scored = sum(int(n) for n in one.plan[3]) * one.heads
    assert counts.of("select", "c").read == scored * 8 * 2
    assert not [d for d in program.declared("buffer") if d.attrs["role"] == "workspace"]
    moved = {n for per in counts.kernels.values() for n, t in per.items() if t.read + t.written}
    assert moved <= {"q", "k", "v", "k_new", "v_new", "plan", "pages", "out", "lse", "c"}
    assert counts.read + counts.written < unfused.read + unfused.written
    assert (one.pages == apart.pages).all() or passes != FUSED


def test_centered_is_block_topk() -> None:
    """The mean over pages does not rank, and the mean over heads is one dot with the summed query."""
    flow = parse_module(CENTERED)
    program = run_pipeline(flow, f"{SIMPLIFY},{FUSED}", PassContext())
    names = [o.name for o in program.functions["select"].ops]
    assert names == ["page.load", "flow.reduce_sum", "page.load", "flow.dot", "flow.topk", "page.store"] or names == [
        "page.load", "page.load", "flow.reduce_sum", "flow.dot", "flow.topk", "page.store",
    ]  # fmt: skip


def test_all_fields_of_a_page_come_from_one_read() -> None:
    flow = parse_module(QUEST)
    base = batch(flow, LENGTHS)
    _, counts, program = run(flow, FUSED, base)
    _, unfused, _ = run(flow, "outline", base)
    appends = [f.name for f in program.functions.values() if f.attrs["kind"] == "append"]
    assert appends == ["append"]
    filled = sum(n // 16 for n in LENGTHS) * base.heads
    assert counts.of("append", "k").read == filled * 16 * 8 * 2
    assert unfused.buffer("k").read - counts.buffer("k").read == filled * 16 * 8 * 2
    assert counts.of("append", "v").read == 0


def test_rows_that_score_nothing_read_no_summaries() -> None:
    flow = parse_module(QUEST)
    _, counts, _ = run(flow, FUSED, batch(flow, [1, 16, 33, 80], budget=Budget(2)))
    assert counts.of("select", "lo").read == counts.of("select", "q").read == 0
    assert counts.of("select", "pages").written > 0


def test_attend_reads_tokens_of_the_request_only() -> None:
    flow = parse_module(QUEST)
    b, counts, _ = run(flow, FUSED, batch(flow, [17, 40]))
    assert counts.of("attend", "k").read == counts.of("attend", "v").read == (17 + 40) * b.heads * 8 * 2


def test_a_load_is_read_again_by_each_pass_that_uses_it() -> None:
    """The weights of pass 1 are applied to the summaries themselves, which pass 0 scored."""
    flow = parse_module(
        head(
            """%d = flow.dot(%q, %c) {spec = "gd,sd->s"} : f32[S]
            %m = flow.reduce_max(%d) {axes = [0]} : f32[]
            %t = flow.sub(%c, %m) : f32[S, 8]
            %u = flow.reduce_sum(%t) {axes = [1]} : f32[S]
            %x = flow.mul(%u, %d) : f32[S]
            %best = flow.topk(%x) : selection
            flow.return(%best)
            """,
            {"c": "bf16"},
        )
    )
    b, counts, _ = run(flow, FUSED, batch(flow, LENGTHS))
    check(flow, b)
    scored = sum(int(n) for n in b.plan[3]) * b.heads
    assert counts.of("select", "c").read == 2 * scored * 8 * 2
    assert counts.scratch["select"] == 4 * scored  # %d; the score itself is the kernel's to keep


def test_ties_and_nans_go_to_the_lower_page() -> None:
    flow = parse_module(CENTERED.replace("%d = flow.dot(%q, %c)", "%d = flow.dot(%z, %c)").replace(
        "{\n%d", "{\n%n = flow.constant() {number = 0.0} : f32[]\n%z = flow.mul(%q, %n) : f32[4, 8]\n%d"))  # fmt: skip
    b, _, _ = run(flow, FUSED, batch(flow, [500], budget=Budget(3)))
    assert b.pages[0, 0].tolist() == [0, 1, 2, 3, 30, 31]
    b = batch(flow, [500], budget=Budget(3))
    b.q[:] = np.nan
    b, _, _ = run(flow, FUSED, b)
    assert b.pages[0, 0].tolist() == [0, 1, 2, 3, 30, 31]


def test_same_bits_alone_and_in_a_batch() -> None:
    flow = parse_module(GQA_BLOCK)
    b = batch(flow, [500, 300], integers=False, new=[0, 0])
    for d in flow.declared("field"):
        b.paged[d.name][:] = 0
    summarise(flow, b)
    both, _, _ = run(flow, FUSED, b)
    b.lengths[1] = 0
    alone, _, _ = run(flow, FUSED, b)
    np.testing.assert_array_equal(both.pages[0], alone.pages[0])
    np.testing.assert_array_equal(both.out[0], alone.out[0])
