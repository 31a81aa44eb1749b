"""Fields of pages beside fields of their blocks: what they mean traced, eagerly, in text and in the interpreters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from tests import batches
from tests.flow.pages_and_blocks import FLOWS, Exact, Pyramid
from tests.flow.test_shortlist import PIPELINES, WHOLE
from vortex.budget import Budget, Cap
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.interpret_page import plan_row, run_program
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.passes.manager import PassContext, run_pipeline
from vortex.spec import Spec

SPEC = Spec(page_size=16, block_size=4, head_dim=8, group=2, dtype="bf16")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BUDGETS = (Budget(3, sink=1, recent=1), Budget(2, "1/3", sink=5, recent=6), Budget(0, sink=0, recent=4))


def integers(*shape: int, seed: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=made).float()


def best(score: torch.Tensor, count: int) -> list[int]:
    """The positions of the best, ties to the lower one, ascending."""
    order = sorted(range(len(score)), key=lambda i: (-float(score[i]), i))
    return sorted(order[:count])


def exact_by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: int) -> tuple[list[int], torch.Tensor]:
    """``Exact`` in plain torch over blocks ``[S, 4, D]`` whose first has index ``first``: the blocks of its last
    shortlist, and their scores.
    """
    pages = len(k) // 4
    hi = k.reshape(pages, 16, 8).amax(1)
    index = torch.arange(first // 4, first // 4 + pages)
    score = (hi * q.amax(0)).sum(-1) - 2 * (index % 5)
    near = best(score, 5)
    second = score[near] + (hi[near] * q[0]).amax(-1)
    nearer = [near[i] for i in best(second, 3)]
    blocks = [4 * p + b for p in nearer for b in range(4)]
    rows = v[blocks].amax(1) - k[blocks].sum(1)
    of_block = rows.amax(-1) + (torch.tensor(blocks, dtype=torch.long) + first) % 5 + second.sum() + pages
    last = [blocks[i] for i in best(of_block + k[blocks].sum(1)[:, 0], 7)]
    at = [blocks.index(b) for b in last]
    return last, of_block[at] + len(blocks) * k[last].amax((1, 2))


@pytest.mark.parametrize("blocks", [0, 4, 8, 32, 300])
def test_eager_is_torch(blocks: int) -> None:
    q, k, v = integers(2, 8, seed=1), integers(blocks, 4, 8, seed=blocks), integers(blocks, 4, 8, seed=blocks + 1)
    fields = oracle.summaries(Exact, SPEC, k, v)
    assert len(fields["hi"]) == blocks // 4
    assert len(fields["sum"]) == blocks
    (got,) = oracle.selection(Exact, SPEC, q, {**fields, "k": k, "v": v}, first_page=8).parts
    last, want = exact_by_hand(q, k, v, 8)
    assert got.near is not None
    assert got.near.tolist() == last
    torch.testing.assert_close(got.score, want, rtol=0, atol=0)
    assert got.over().isnan().sum() == blocks - len(last)


@pytest.mark.parametrize("blocks", [1, 2, 33, 300])
@pytest.mark.parametrize("missing", [0, 1, 3])
def test_a_step_is_torch(blocks: int, missing: int) -> None:
    """Reserved blocks reach on to where a page begins; pages that are not full are never listed."""
    length = max(1, blocks * 4 - missing)
    q, k, v = integers(2, 8, seed=2), integers(length, 1, 8, seed=3), integers(length, 1, 8, seed=4)
    for budget in BUDGETS:
        made = oracle.step(Exact, SPEC, q, k, v, budget)
        n = -(-length // 4)
        first, end = -(-budget.sink // 4) * 4, max(0, n - budget.recent) // 4 * 4
        left = budget.total(n) - budget.sink - budget.recent
        want = set(range(n))
        if end - first > left:
            rows = [x[first * 4 : end * 4, 0].reshape(-1, 4, 8) for x in (k, v)]
            last, score = exact_by_hand(q, *rows, first)
            chosen = {first + last[i] for i in best(score, left)}
            want = {*range(first), *chosen, *range(end, n)}
        assert made.pages[0] == sorted(want)
        tokens = [t for t in range(length) if t // 4 in want]
        logits = q @ k[tokens, 0].T / math.sqrt(8)
        torch.testing.assert_close(made.out, logits.softmax(-1) @ v[tokens, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flow", FLOWS)
def test_text_returns(flow: str) -> None:
    module = trace(FLOWS[flow], SPEC)
    text = print_module(module)
    assert print_module(parse_module(text)) == text
    program = run_pipeline(module, WHOLE, PassContext())
    text = print_module(program)
    assert print_module(parse_module(text)) == text
    assert [f for f in program.functions] == ["plan", "append", "select", "attend"]


@pytest.mark.parametrize("flow", FLOWS)
def test_without_blocks_a_block_is_a_page(flow: str) -> None:
    spec = Spec(page_size=8, head_dim=8, group=2, dtype="bf16")
    module = trace(FLOWS[flow], spec)
    assert "per =" not in print_module(module)
    assert "S/" not in print_module(module)


def test_a_flow_that_says_nothing_is_about_blocks() -> None:
    class Says(Pyramid):
        def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
            assert spec.page_size == spec.block_size == 4
            return {n: vortex.Field(spec.head_dim) for n in ("lo", "hi")}

        def forward_cache(self, page: Any) -> dict[str, Any]:
            return {"lo": page.block.k.amin(0), "hi": page.k.amax(0)}

        def forward_indexer(self, q: Any, cache: Any) -> Any:
            return vortex.topk((cache.lo * q[0] + cache.hi * q[1]).sum(-1) + vortex.block_index())

    text = print_module(trace(Says, SPEC))
    assert "%lo: bf16[S, 8]" in text
    assert "S/4" not in text


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("flow", FLOWS)
def test_programs_select_as_the_oracle(flow: str, pipeline: str) -> None:
    """Every op a kernel of its own, or one ``select``, on what ``append`` made: the pages of the eager flow."""
    cls = FLOWS[flow]
    module = trace(cls, SPEC)
    program = run_pipeline(trace(cls, SPEC), pipeline, PassContext())
    for budget in BUDGETS:
        lengths = [3, 18, 60, 131, 271]
        b = batches.batch(module, lengths, budget=budget, integers=flow != "Pyramid")
        run_program(program, b)
        held = batches.copy(b)
        batches.summarise(module, held)
        for name in ("lo", "hi", "sum", "codes", "mean", "top", "first", "sign"):
            if name in b.paged:
                assert (
                    torch.from_numpy(b.paged[name]).nan_to_num(-9) == torch.from_numpy(held.paged[name]).nan_to_num(-9)
                ).all()
        for r, h in b.rows():
            got = b.pages[r, h, : b.counts[r, h]].tolist()
            assert got == batches.oracle_selection(module, b, r, h)
            tokens = torch.from_numpy(b.page_table[r, : -(-lengths[r] // 16)])
            k, v = (torch.from_numpy(b.paged[n])[tokens, h].flatten(0, 1)[: lengths[r], None] for n in ("k", "v"))
            q = torch.from_numpy(b.q[r, 2 * h : 2 * h + 2])
            if flow != "Pyramid":
                assert got == oracle.step(cls, SPEC, q, k, v, budget, head_offset=1).pages[0]


def test_bytes_of_pages_and_of_their_blocks() -> None:
    module = trace(Pyramid, SPEC)
    program = run_pipeline(module, WHOLE, PassContext())
    budget = Budget(3, sink=1, recent=1)
    b = batches.batch(module, [16 * 40], heads=1, budget=budget, new=[1])
    batches.summarise(module, b)
    counts = run_program(program, b)
    # 38 whole pages are candidates, the blocks of three are looked at
    assert counts.of("select", "lo").read == counts.of("select", "hi").read == 38 * 8 * 2
    assert counts.of("select", "codes").read == 3 * 4 * 4 * 8 // 2
    assert counts.of("select", "codes_scale").read == 3 * 4 * 4 * 2
    assert counts.of("select", "k").read == 0
    # the last token fills a page and its last block: both read their rows
    assert counts.of("append", "k").read == (16 + 4) * 8 * 2
    assert counts.of("append", "lo").written == 8 * 2
    assert counts.of("append", "codes").written == 4 * 8 // 2
    usual = batches.batch(module, [16 * 40 - 4], heads=1, budget=budget, new=[1])
    batches.summarise(module, usual)
    counts = run_program(program, usual)
    assert counts.of("append", "k").read == 4 * 8 * 2
    assert counts.of("append", "lo").written == 0


def test_caps_count_whole_pages() -> None:
    budget, cap = Budget(3, sink=1, recent=2), Cap(whole=4)
    for n in range(60):
        total, kept, first, scored = plan_row(n * 16 - 3 if n else 0, 16, budget.numbers(), cap)
        assert (total, scored) == (n, cap.scored(budget, n))
        assert first % 4 == scored % 4 == 0
        assert kept == cap.kept(budget, n)
        assert kept <= cap.total(budget, n)
        if scored:
            assert range(first, first + scored) == cap.candidates(budget, n)
            assert first >= 1
            assert first + scored <= n - 2
            assert kept == n - scored + 3


@pytest.mark.parametrize("pages", [0, 1, 2, 33, 75])
def test_the_example_is_its_formula(pages: int) -> None:
    """Quest's bound of 16 tokens keeps 32 pages; the mass that keys in four bits give their blocks of 4 ranks these."""
    flow = find_flow(str(EXAMPLES / "pyramid.py"))
    made = torch.Generator().manual_seed(pages)
    spec = Spec(page_size=16, block_size=4, head_dim=8, group=2, dtype="f32")
    q, k = torch.randn(2, 8, generator=made), torch.randn(4 * pages, 4, 8, generator=made)
    (got,) = oracle.selection(flow, spec, q, oracle.summaries(flow, spec, k, k)).parts
    of_page = k.reshape(pages, 16, 8)
    bound = torch.maximum(q * of_page.amin(1)[:, None], q * of_page.amax(1)[:, None]).sum(-1).amax(-1)
    near = bound.topk(min(32, pages)).indices.sort().values
    blocks = (near[:, None] * 4 + torch.arange(4)).reshape(-1)
    assert got.near is not None
    assert got.near.tolist() == blocks.tolist()
    scale = (k.abs().amax(-1, keepdim=True) / 7).half().float()
    keys = (k / scale).clamp(-7, 7).round() * scale
    mass = (torch.einsum("spd,gd->spg", keys[blocks], q) * 8**-0.5).exp().sum(1)
    torch.testing.assert_close(got.score, (mass / mass.sum(0)).sum(-1), rtol=1e-4, atol=1e-6)
    # where a block is a page the same flow has one step less to go down
    plain = Spec(page_size=4, head_dim=8, group=2, dtype="f32")
    (whole,) = oracle.selection(flow, plain, q, oracle.summaries(flow, plain, k, k)).parts
    assert whole.near is not None
    assert len(whole.near) == min(32, 4 * pages)


BAD = {
    "VX1094": ("bound", "pages"),
    "VX1005": ("cache.codes.amax((1, 2)) + bound", "blocks"),
}


@pytest.mark.parametrize("code", BAD)
def test_scores_of_the_wrong_axis(code: str) -> None:
    expression, word = BAD[code]

    class Wrong(Pyramid):
        def forward_indexer(self, q: Any, cache: Any) -> Any:
            bound = (cache.lo @ q.T).amax(-1)
            return vortex.topk(eval(expression, {"cache": cache, "bound": bound}))

    with pytest.raises(VortexError) as caught:
        trace(Wrong, SPEC)
    assert caught.value.code == code
    assert word in caught.value.message
    assert caught.value.loc is not None
    assert caught.value.help
    if code == "VX1094":
        trace(Wrong, Spec(page_size=16, head_dim=8, group=2))


@pytest.mark.parametrize("name", ["lo", "codes"])
def test_fields_are_made_from_their_own_rows(name: str) -> None:
    class Wrong(Pyramid):
        def forward_cache(self, page: Any) -> dict[str, Any]:
            right = {"lo": page.k.amin(0), "hi": page.k.amax(0), "codes": page.block.k}
            return {**right, name: page.block.k.amin(0) if name == "lo" else page.k[:4]}

    with pytest.raises(VortexError, match=f"field '{name}' belongs to") as caught:
        trace(Wrong, SPEC)
    assert caught.value.code == "VX1093"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"per": "row"}, "there is no per='row'"),
        ({"per": "block", "state": "request"}, "of state of the request"),
    ],
)
def test_declarations(more: dict[str, Any], why: str) -> None:
    with pytest.raises(VortexError, match=why) as caught:
        vortex.Field(4, **more)
    assert caught.value.code == "VX1016"


STATEFUL = """
import vortex

@vortex.register("NAME")
class Stateful(vortex.vFlow):
    def create_cache(self, spec):
        return {
            "top": vortex.Field(spec.head_dim, per="page"),
            "old": vortex.Field(state="page", PER),
        }

    def forward_cache(self, page):
        return {"top": page.k.amax(0)}

    def forward_indexer(self, q, cache):
        near = vortex.shortlist(cache.top @ q[0], pages=4)
        return vortex.topk(cache.old[near]), {"old": cache.old + 1}
"""


@pytest.mark.parametrize(
    ("name", "per", "eager"),
    [("stateful", "", False), ("stateful_page", 'per="page"', False), ("stateful_eager", "", True)],
)
def test_state_of_whole_pages_is_refused(name: str, per: str, eager: bool, tmp_path: Path) -> None:
    """Blocks are what is selected, so state is of blocks; what the help says to write compiles."""
    file, text = tmp_path / "stateful.py", STATEFUL.replace("NAME", name)
    file.write_text(text.replace("PER", per))
    flow = find_flow(str(file))
    with pytest.raises(VortexError) as caught:
        oracle.RequestState(flow, SPEC, 1) if eager else trace(flow, SPEC)
    assert caught.value.code == "VX1016"
    said, help = caught.value.render(), 'state="page", per="block"'
    assert "state 'old' belongs to pages, of which blocks are selected" in said
    assert "stateful.py:9" in said
    assert '"old": vortex.Field(state="page"' in said
    assert help in caught.value.help
    whole = Spec(page_size=16, head_dim=8, group=2)
    assert trace(flow, whole).decls["old"].attrs["state"] == "page"
    file.write_text(text.replace('state="page", PER', help))
    assert trace(find_flow(str(file)), SPEC).decls["old"].attrs["state"] == "page"
