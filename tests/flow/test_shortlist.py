"""Two-step selections: what shortlists mean traced, eagerly, in text and in the interpreters, and what they read."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vortex
from tests import batches
from tests.flow.shortlists import FLOWS, Latent, Linear, ThreeSteps, TwoSteps
from vortex.errors import VortexError, VortexWarning
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.interpret import run_function
from vortex.ir.interpret_page import Counts, plan_row, run_program
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.passes.manager import DEFAULT_PIPELINE, PassContext, run_pipeline
from vortex.spec import Spec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WHOLE = f"{DEFAULT_PIPELINE['flow']},{DEFAULT_PIPELINE['page']}"
SPEC = Spec(page_size=4, head_dim=8, group=2, dtype="bf16")


def integers(*shape: int, seed: int = 0) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=made).to(torch.bfloat16)


def by_hand(q: torch.Tensor, k: torch.Tensor, pages: int) -> tuple[list[int], torch.Tensor]:
    """``Linear`` in plain torch: the pages of the shortlist and their scores."""
    bound = torch.maximum(q * k.amin(1)[:, None], q * k.amax(1)[:, None]).sum(-1).amax(-1)
    order = sorted(range(len(k)), key=lambda i: (-float(bound[i]), i))[:pages]
    near = sorted(order)
    logits = torch.einsum("spd,gd->spg", k[near], q).amax(1)
    index = torch.tensor(near)
    return near, logits.sum(-1) - bound[near] + index % 3 + logits.sum()


@pytest.mark.parametrize("pages", [0, 1, 2, 33, 300])
def test_eager_is_torch(pages: int) -> None:
    q, k = integers(2, 8, seed=1).float(), integers(pages, 4, 8, seed=pages).float()
    fields = oracle.summaries(Linear, SPEC, k, k)
    (got,) = oracle.selection(Linear, SPEC, q, {**fields, "k": k, "v": k}).parts
    near, want = by_hand(q, k, 5)
    assert got.near is not None
    assert got.near.tolist() == near
    torch.testing.assert_close(got.score, want.float(), rtol=0, atol=0)
    assert got.over().isnan().sum() == pages - len(near)


@pytest.mark.parametrize("flow", FLOWS)
def test_text_returns(flow: str) -> None:
    module = trace(FLOWS[flow], SPEC)
    text = print_module(module)
    assert print_module(parse_module(text)) == text
    program = run_pipeline(module, WHOLE, PassContext())
    text = print_module(program)
    assert print_module(parse_module(text)) == text


PIPELINES = ["outline", "canonicalize,cse,outline,expand-softmax,fuse,plan-memory", WHOLE]


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("flow", FLOWS)
def test_programs_select_as_the_oracle(flow: str, pipeline: str) -> None:
    """Every op a kernel of its own, or one ``select``: the pages of the eager flow, on exact numbers."""
    cls = FLOWS[flow]
    module = trace(cls, SPEC)
    program = run_pipeline(trace(cls, SPEC), pipeline, PassContext())
    budget = vortex.Budget(3, sink=1, recent=1)
    b = batches.batch(module, [3, 18, 60, 131], budget=budget, stored=True, integers=True)
    if flow == "TwoSteps":
        b = batches.batch(module, [3, 18, 60, 131], budget=budget, stored=True, integers=False)
    batches.summarise(module, b)
    run_program(program, b)
    for r, h in b.rows():
        got = b.pages[r, h, : b.counts[r, h]].tolist()
        assert got == batches.oracle_selection(module, b, r, h)
        n, _, first, scored = plan_row(int(b.lengths[r]), 4, b.budget)
        if not scored:
            continue
        at = b.page_table[r, first : first + scored]
        held = {n: torch.from_numpy(x[at, h]) for n, x in b.paged.items()}
        q = torch.from_numpy(b.q[r, 2 * h : 2 * h + 2])
        chosen = oracle.selection(cls, SPEC, q, held, first_page=first, pages=scored)
        assert got == oracle.select_pages(chosen, n, budget)


def counted(flow: type[vortex.vFlow], length: int) -> tuple[Counts, int]:
    module = trace(flow, SPEC)
    program = run_pipeline(module, WHOLE, PassContext())
    b = batches.batch(module, [length], heads=1, budget=vortex.Budget(3, sink=1, recent=1), stored=True)
    batches.summarise(module, b)
    return run_program(program, b), -(-length // 4) - 2


def test_latent_rows() -> None:
    spec = Spec.of_latent("24+8", 3, page_size=4, dtype="f32")
    module = trace(Latent, spec)
    program = run_pipeline(module, WHOLE, PassContext())
    b = batches.batch(module, [3, 60, 131], heads=1, budget=vortex.Budget(2, sink=1, recent=1), stored=True)
    batches.summarise(module, b)
    counts = run_program(program, b)
    for r, h in b.rows():
        assert b.pages[r, h, : b.counts[r, h]].tolist() == batches.oracle_selection(module, b, r, h)
    assert counts.of("select", "latent").read == 2 * 4 * 4 * 32 * 4


@pytest.mark.parametrize("length", [40, 160])
def test_rows_of_the_shortlist_alone_are_read(length: int) -> None:
    counts, scored = counted(TwoSteps, length)
    page = 4 * 8 * 2
    assert counts.of("select", "k").read == 5 * page
    assert counts.of("select", "v").read == 0
    assert counts.of("select", "lo").read == scored * 8 * 2
    counts, scored = counted(ThreeSteps, length)
    assert counts.of("select", "v").read == min(4, scored) * page
    assert counts.of("select", "mean").read == scored * 8 * 2
    assert counts.of("select", "hi").read == (min(12, scored) + min(4, scored)) * 8 * 2


@pytest.mark.parametrize("name", ["quest_then_exact", "quest_then_mass"])
@pytest.mark.parametrize("pages", [33, 300])
def test_examples_are_their_formulas(name: str, pages: int) -> None:
    flow = find_flow(str(EXAMPLES / f"{name}.py"))
    made = torch.Generator().manual_seed(pages)
    spec = Spec(page_size=4, head_dim=8, group=2, dtype="f32")
    q, k = torch.randn(2, 8, generator=made), torch.randn(pages, 4, 8, generator=made)
    fields = oracle.summaries(flow, spec, k, k)
    lo, hi = fields["lo"].float(), fields["hi"].float()
    bound = torch.maximum(q * lo[:, None], q * hi[:, None]).sum(-1).amax(-1)
    near = bound.topk(min(64, pages)).indices.sort().values
    mass = (torch.einsum("spd,gd->spg", k[near], q) * 8**-0.5).exp().sum(1)  # [S1, group]
    want = (mass / mass.sum(0)).sum(-1)
    (got,) = oracle.selection(flow, spec, q, {**fields, "k": k, "v": k}).parts
    assert got.near is not None
    assert got.near.tolist() == near.tolist()
    torch.testing.assert_close(got.score, want, rtol=1e-5, atol=1e-7)
    index = trace(flow, spec).functions["index"]
    given = [{"q": q, "k": k, **fields}[a.name].float().numpy() for a in index.args]
    (ranked,) = run_function(index, given, trace(flow, spec))
    assert ranked.near.tolist() == near.tolist()
    np.testing.assert_allclose(ranked.score, want.numpy(), rtol=1e-5)


@pytest.mark.parametrize("pages", [1, 2, 33, 300])
def test_twilight_keeps_a_share_of_the_mass(pages: int) -> None:
    """The fewest pages, best first, with 85 % of the mass that keys in four bits tell of the pages near by."""
    flow = find_flow(str(EXAMPLES / "twilight.py"))
    made = torch.Generator().manual_seed(pages)
    spec = Spec(page_size=4, head_dim=8, group=2, dtype="f32")
    q, k = 3 * torch.randn(2, 8, generator=made), torch.randn(pages, 4, 8, generator=made)
    (got,) = oracle.selection(flow, spec, q, oracle.summaries(flow, spec, k, k)).parts
    bound = torch.maximum(q * k.amin(1)[:, None], q * k.amax(1)[:, None]).sum(-1).amax(-1)
    near = bound.topk(min(256, pages)).indices.sort().values
    assert got.near is not None
    assert got.near.tolist() == near.tolist()
    scale = (k.abs().amax(-1, keepdim=True) / 7).half().float()
    keys = (k / scale).clamp(-7, 7).round() * scale
    mass = (torch.einsum("spd,gd->spg", keys[near], q) * 8**-0.5).exp().sum(1)
    want = (mass / mass.sum(0)).sum(-1)
    torch.testing.assert_close(got.score, want, rtol=1e-4, atol=1e-6)
    best = got.best(1000)
    order = want.argsort(descending=True)
    shares = want[order].cumsum(0) / want.sum()
    least = 1 + int((shares < 0.85 - 1e-5).sum())
    most = 1 + int((shares < 0.85 + 1e-5).sum())
    assert least <= len(best) <= most
    assert set(best) == set(near[order[: len(best)]].tolist())
    assert len(best) < pages or pages < 3


def test_a_shortlist_shorter_than_the_budget() -> None:
    """All of it and no other page, beside the reserved ones."""
    q, k = torch.randn(2, 8), torch.randn(4 * 40, 1, 8)
    fields = [oracle.summaries(Linear, SPEC, k[:, 0].reshape(-1, 4, 8), k[:, 0].reshape(-1, 4, 8))]
    done = oracle.step(Linear, SPEC, q, k, k, vortex.Budget(2, "1/2", sink=1, recent=2), fields=fields)
    scores = done.scores[0]
    assert scores is not None
    listed = [1 + i for i in range(37) if not math.isnan(float(scores[i]))]
    assert len(listed) == 5
    assert done.pages == [[0, *listed, 38, 39]]


def test_shortlist_of_not_a_number() -> None:
    """NaN ranks last, and before what the shortlist left out."""
    k = torch.full((40, 1, 8), math.nan)
    k[:8] = 1
    k[8:12] = 2
    done = oracle.step(Linear, SPEC, torch.ones(2, 8), k, k, vortex.Budget(4, sink=0, recent=1))
    assert done.pages == [[0, 1, 2, 3, 9]]


def test_rows_of_all_pages_are_warned_of() -> None:
    """Once, at the op that makes something of them; at the pages of a shortlist they are what they are for."""

    class Dense(TwoSteps):
        def forward_indexer(self, q: Any, cache: Any) -> Any:
            return vortex.topk((cache.k @ q[0]).amax(1))

    with pytest.warns(VortexWarning, match="cache.k is read at every candidate page, 64 bytes each"):
        trace(Dense, SPEC)
    with warnings.catch_warnings():
        warnings.simplefilter("error", VortexWarning)
        trace(TwoSteps, SPEC)
        trace(ThreeSteps, SPEC)


BAD_TEXT = [
    ("%near = flow.shortlist(%s) : i32[S1<=4]\n%other = flow.shortlist(%s) : i32[S1<=4]", "VX2008", "second shortlist"),
    ("%near = flow.shortlist(%s) : i32[S1<=0]", "VX2001", "1 to 4096"),
    ("%near = flow.shortlist(%s) : f32[S1<=4]", "VX2007", "no list of pages"),
    ("%near = flow.shortlist(%s) : i32[S]", "VX2007", "no list of pages"),
    ("%x = flow.pick(%s, %i) : f32[S]", "VX2008", "%i is no list of pages"),
    ("%near = flow.shortlist(%s) : i32[S1<=4]\n%x = flow.pick(%s, %near) : f32[S]", "VX2006", "S1<=4"),
    (
        "%near = flow.shortlist(%s) : i32[S1<=4]\n%x = flow.pick(%s, %near) : f32[S1<=4]\n"
        "%y = flow.add(%x, %s) : f32[S]",
        "VX2007",
        "all candidates meet the pages of a shortlist",
    ),
    (
        "%near = flow.shortlist(%s) : i32[S1<=4]\n%x = flow.pick(%s, %near) : f32[S1<=4]\n"
        "%p = flow.topk(%x) : selection",
        "VX2007",
        "has to be an operand",
    ),
    (
        "%near = flow.shortlist(%s) : i32[S1<=4]\n%x = flow.pick(%s, %near) : f32[S1<=4]\n"
        "%more = flow.shortlist(%x) : i32[S2<=5]",
        "VX2007",
        "more pages",
    ),
]


@pytest.mark.parametrize(("text", "code", "said"), BAD_TEXT)
def test_text_that_is_wrong(text: str, code: str, said: str) -> None:
    whole = f"flow.module @m {{ func @index(%s: f32[S], %i: i32[S]) {{ {text}\nflow.return(%s) }} }}"
    with pytest.raises(VortexError) as caught:
        parse_module(whole)
    assert caught.value.code == code
    assert said in str(caught.value)


def test_what_is_computed_of_a_page_is_computed_at_few() -> None:
    """A product of a field with its scale is made at the pages of the shortlist, not kept for all."""

    class Scaled(TwoSteps):
        def forward_indexer(self, q: Any, cache: Any) -> Any:
            codes = cache.lo * cache.hi.sum(-1, keepdim=True)
            near = vortex.shortlist(cache.hi @ q[0], pages=3)
            return vortex.topk(codes[near].reshape(-1, 4, 2).amax((1, 2)))

    program = run_pipeline(trace(Scaled, SPEC), WHOLE, PassContext())
    b = batches.batch(trace(Scaled, SPEC), [160], heads=1, budget=vortex.Budget(2), stored=True)
    batches.summarise(trace(Scaled, SPEC), b)
    counts = run_program(program, b)
    assert counts.of("select", "lo").read == 3 * 16
    assert counts.scratch["select"] == 3 * 4
    assert np.array_equal(b.pages[0, 0, : b.counts[0, 0]], batches.oracle_selection(trace(Scaled, SPEC), b, 0, 0))
