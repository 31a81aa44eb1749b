"""Budgets of requests' own: each request of a batch keeps what its budget keeps of it alone, or all its pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from tests.batches import batch, copy, oracle_selection
from vortex.budget import EVERY_PAGE, Budget
from vortex.cli.main import main
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import vFlow
from vortex.flow.trace import trace
from vortex.ir.interpret_page import run_program
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.paged_cache import PagedCache
from vortex.spec import Spec

SPEC = Spec(page_size=8, head_dim=64, group=2, request_budgets=True)
HEADS = 3
LENGTHS = (8 * 40 + 3, 8 * 40 + 3, 8 * 40 + 3, 8 * 36, 5, 8 * 40 + 3, 8 * 12 + 1)
ALL = Budget(4)
OWN = (None, Budget(9), EVERY_PAGE, Budget(0, "1/4"), Budget(2), Budget(0, sink=2, recent=5), Budget(1))
"""Of each request; None for that of the decoder."""


class Means(vFlow):
    """The pages whose mean key the mean query likes best."""

    def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
        return {"c": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"c": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.c @ q.mean(0))


class Share(Means):
    """Rows are scored even where all their pages would fit."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topp((cache.c @ q.mean(0) * q.shape[-1] ** -0.5).exp(), 0.6)


class Both(Means):
    """Two parts, one of them of a fixed number of pages."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.union(vortex.topk(cache.c @ q.mean(0)), vortex.topk(-(cache.c @ q.mean(0)), pages=2))


FLOWS = {"topk": Means, "topp": Share, "union": Both}
SPECS = {"pages": SPEC, "blocks": replace(SPEC, page_size=16, block_size=8), "table": replace(SPEC, budget_table=True)}


def rows_of(own: Sequence[Budget | None]) -> torch.Tensor:
    return torch.tensor([(-1,) * 5 if b is None else b.numbers() for b in own], dtype=torch.int32)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[tuple[str, str], Path] = {}

    def one(flow: str, spec: str = "pages") -> Path:
        if (flow, spec) not in made:
            out = tmp_path_factory.mktemp("own") / f"{flow}-{spec}.vxa"
            made[flow, spec] = compile_flow(FLOWS[flow](), spec=SPECS[spec], out=out).artifact  # type: ignore[assignment]
        return made[flow, spec]

    return one


class Filled:
    """Requests whose prompts were read, and the query of one step."""

    def __init__(self, path: Path, spec: Spec, *, layers: int = 1, **more: Any) -> None:
        torch.manual_seed(0)
        self.spec, self.budget = spec, more.pop("budget", ALL)
        self.decoder = load(path, budget=self.budget, debug=True, largest=EVERY_PAGE, **more)
        self.cache = PagedCache(
            sum(-(-n // spec.page_size) + 2 for n in LENGTHS), HEADS, spec, self.decoder.fields, layers=layers
        )
        self.bind(self.decoder)
        for r in range(len(LENGTHS)):
            self.cache.add(r)
        loc, self.offsets = self.cache.extend_batch(range(len(LENGTHS)), LENGTHS)
        self.lengths = self.cache.lengths(range(len(LENGTHS)))
        self.table = self.cache.page_table(range(len(LENGTHS)))
        self.decoder.plan(self.lengths, self.table)
        self.k, self.v = (torch.randn(sum(LENGTHS), HEADS, 64).bfloat16() for _ in "kv")
        for layer in range(layers):
            self.decoder.append(layer, self.k, self.v, loc, self.offsets)
        self.q = torch.randn(len(LENGTHS), HEADS * 2, 64).bfloat16()

    def bind(self, decoder: Decoder) -> None:
        for layer in range(len(self.cache.k)):
            decoder.bind(layer, self.cache.k[layer], self.cache.v[layer], self.cache.fields[layer])

    def step(
        self, decoder: Decoder, rows: slice, own: torch.Tensor | None
    ) -> tuple[list[list[list[int]]], torch.Tensor]:
        """Pages by request and head, and what is attended to."""
        q = self.q[rows].clone()
        out = torch.empty_like(q)
        decoder.plan(self.lengths[rows].clone(), self.table[rows].clone(), budgets=own)
        decoder.decode(0, q, out=out)
        assert decoder.pages is not None and decoder.counts is not None
        pages, counts = decoder.pages, decoder.counts.tolist()
        return [[pages[r, h, :n].tolist() for h, n in enumerate(row)] for r, row in enumerate(counts)], out


@pytest.mark.parametrize("spec", ["pages", "blocks"])
@pytest.mark.parametrize("flow", FLOWS)
def test_each_request_keeps_what_its_budget_keeps_alone(compiled: Any, flow: str, spec: str) -> None:
    path = compiled(flow, spec)
    world = Filled(path, SPECS[spec])
    pages, out = world.step(world.decoder, slice(None), rows_of(OWN))
    for r, own in enumerate(OWN):
        budget = own or ALL
        alone = load(path, budget=budget)
        world.bind(alone)
        want, attended = world.step(alone, slice(r, r + 1), None)
        assert pages[r] == want[0], (r, budget)
        assert torch.equal(out[r], attended[0])
        mine = slice(int(world.offsets[r]), int(world.offsets[r + 1]))
        said = oracle.step(FLOWS[flow](), SPECS[spec], world.q[r], world.k[mine], world.v[mine], budget)
        assert pages[r] == said.pages
        torch.testing.assert_close(out[r].float(), said.out, rtol=2e-2, atol=1e-2)
        if own is EVERY_PAGE:
            assert pages[r] == [list(range(-(-LENGTHS[r] // 8)))] * HEADS


def test_without_budgets_all_have_the_decoders(compiled: Any) -> None:
    world = Filled(compiled("topk"), SPEC)
    none, out = world.step(world.decoder, slice(None), None)
    same, again = world.step(world.decoder, slice(None), rows_of([None] * len(LENGTHS)))
    assert none == same and torch.equal(out, again)
    assert none != world.step(world.decoder, slice(None), rows_of(OWN))[0]
    assert world.step(world.decoder, slice(None), None)[0] == none


def test_dense_layers_stay_dense(compiled: Any) -> None:
    world = Filled(compiled("topk"), SPEC, dense=True)
    world.decoder.plan(world.lengths, world.table, budgets=rows_of([Budget(0)] * len(LENGTHS)))
    all_pages, few = torch.empty_like(world.q), torch.empty_like(world.q)
    world.decoder.attend_all(0, world.q, out=all_pages)
    world.decoder.decode(0, world.q, out=few)
    world.decoder.plan(world.lengths, world.table, budgets=rows_of([EVERY_PAGE] * len(LENGTHS)))
    dense = torch.empty_like(world.q)
    world.decoder.decode(0, world.q, out=dense)
    assert torch.equal(dense, all_pages) and not torch.equal(few, all_pages)


def test_a_table_bounds_them_too(compiled: Any) -> None:
    world = Filled(compiled("topk", "table"), SPECS["table"], budget=Budget(table=[[2, 6, 30]]))
    own = [Budget(5), None, EVERY_PAGE, Budget(9), Budget(1), Budget(30), Budget(3)]
    pages, _ = world.step(world.decoder, slice(None), rows_of(own))
    assert [len(row) for row in pages[0]] == [5, 8, 8]
    assert [len(row) for row in pages[1]] == [5, 9, 33]
    assert [len(row) for row in pages[2]] == [41, 41, 41]


def test_reused_selections_end_where_each_budget_says(compiled: Any) -> None:
    """Between selections the last pages of a request stay the last ones, as many as its own budget reserves."""
    world = Filled(compiled("topk"), SPEC, keep=[0])
    world.decoder.reserve(len(LENGTHS), 60)  # else what is kept moves, and all select, when the longest grow by a page
    slots = torch.arange(len(LENGTHS), dtype=torch.int32)
    own = rows_of(OWN)
    out = torch.empty_like(world.q)
    for tokens in range(1, 10):  # a page more for each request
        loc, offsets = world.cache.extend_batch(range(len(LENGTHS)), [1] * len(LENGTHS))
        lengths = world.cache.lengths(range(len(LENGTHS)))
        assert lengths.tolist() == [n + tokens for n in LENGTHS]
        table = world.cache.page_table(range(len(LENGTHS)))
        world.decoder.plan(lengths, table, slots, budgets=own)
        new = torch.randn(len(LENGTHS), HEADS, 64).bfloat16()
        world.decoder.append(0, new, new, loc, offsets)
        world.decoder.decode(0, world.q, out=out, every=16)
        assert world.decoder.pages is not None and world.decoder.counts is not None
        for r, budget in enumerate(OWN):
            n = -(-int(lengths[r]) // 8)
            for h in range(HEADS):
                mine = world.decoder.pages[r, h, : world.decoder.counts[r, h]].tolist()
                assert len(mine) == min(n, (budget or ALL).total(n)) or budget == Budget(0, "1/4")
                recent = min(n, (budget or ALL).recent)
                assert mine[-recent:] == list(range(n - recent, n))


@pytest.mark.parametrize("flow", FLOWS)
def test_the_interpreter_says_the_same(flow: str) -> None:
    module = trace(FLOWS[flow](), SPEC)
    program = compile_flow(FLOWS[flow](), spec=SPEC, to="page").programs["cpu"]
    b = batch(module, LENGTHS, budget=Budget(60), heads=2)
    b.budget = ALL.numbers()
    b.request_budget = rows_of(OWN).numpy()
    run_program(program, filled := copy(b))
    for r, h in b.rows():
        have = filled.pages[r, h, : filled.counts[r, h]].tolist()
        assert have == oracle_selection(module, filled, r, h)
        if flow == "topk":
            n = -(-LENGTHS[r] // 8)
            assert len(have) == min(n, (OWN[r] or ALL).total(n))


def test_what_does_not_go_together_is_refused(compiled: Any, tmp_path: Path) -> None:
    plain = compile_flow(Means(), spec=replace(SPEC, request_budgets=False), out=tmp_path / "plain.vxa").artifact
    assert plain is not None
    with pytest.raises(VortexError, match="--request-budgets") as e:
        load(plain, budget=ALL, largest=EVERY_PAGE)
    assert e.value.code == "VX6001"
    world = Filled(compiled("topk"), SPEC)
    decoder = load(plain, budget=ALL)
    world.bind(decoder)
    with pytest.raises(VortexError, match="--request-budgets") as e:
        decoder.plan(world.lengths, world.table, budgets=rows_of(OWN))
    assert e.value.code == "VX6001"
    few = load(compiled("topk"), budget=ALL, largest=Budget(6), debug=True)
    world.bind(few)
    assert few.capacity(1000) == 9
    for bad, code in (
        (rows_of(OWN)[1:], "VX6002"),
        (rows_of(OWN).long(), "VX6002"),
        (torch.tensor([[3, -1, 2, 0, 1]] * len(LENGTHS), dtype=torch.int32), "VX6002"),
        (torch.tensor([[3, 1, 2, 0, 0]] * len(LENGTHS), dtype=torch.int32), "VX6002"),
        (rows_of([Budget(7)] * len(LENGTHS)), "VX6006"),
    ):
        with pytest.raises(VortexError) as e:
            few.plan(world.lengths, world.table, budgets=bad)
        assert e.value.code == code


def test_the_command_line_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "block_topk", "--request-budgets", "--to", "page", "--no-dump"]) == 0
    assert "request_budgets = true" in capsys.readouterr().out
