"""Budgets by layer and KV head: each row keeps its own number of pages, as the oracle says, and no more is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from vortex.budget import Budget
from vortex.check.verdict import judge
from vortex.cli.main import main
from vortex.cli.run import traced_flow
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.paged_cache import PagedCache
from vortex.spec import Spec

SPEC = Spec(page_size=8, head_dim=64, group=2, budget_table=True)
TABLE = Budget(table=[[2, 5, 9], [0, 40, 1]])
CANDIDATES = (0, 1, 2, 33)
"""Pages between the reserved ones."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = compile_flow("block_topk", spec=SPEC, out=tmp_path_factory.mktemp("table") / "b.vxa")
    assert made.artifact is not None
    return made.artifact


def check(decoder: Decoder, budget: Budget, heads: int) -> None:
    """One step of requests with 0, 1, 2 and 33 candidates, and of one that fits whole, in each layer."""
    torch.manual_seed(0)
    lengths = [8 * (s + budget.sink + budget.recent) - 3 for s in CANDIDATES] + [5]
    requests = list(range(len(lengths)))
    cache = PagedCache(sum(-(-n // 8) for n in lengths), heads, SPEC, decoder.fields, layers=2)
    for layer in range(2):
        decoder.bind(layer, cache.k[layer], cache.v[layer], cache.fields[layer])
    decoder.budget = budget
    for r in requests:
        cache.add(r)
    loc, offsets = cache.extend_batch(requests, lengths)
    decoder.plan(cache.lengths(requests), cache.page_table(requests))
    for layer in range(2):
        k, v = (torch.randn(sum(lengths), heads, 64).bfloat16() for _ in "kv")
        decoder.append(layer, k, v, loc, offsets)
        q = torch.randn(len(lengths), heads * 2, 64).bfloat16()
        out = torch.empty_like(q)
        decoder.decode(layer, q, out=out)
        assert decoder.pages is not None and decoder.counts is not None
        for r, n in enumerate(lengths):
            mine = slice(int(offsets[r]), int(offsets[r]) + n)
            want = oracle.step(
                find_flow("block_topk"),
                SPEC,
                q[r],
                k[mine],
                v[mine],
                budget,
                layer=layer,
                head_offset=decoder.head_offset,
            )
            for h in range(heads):
                got = decoder.pages[r, h, : decoder.counts[r, h]].tolist()
                assert got == want.pages[h], (layer, r, h)
                pages, reserved = -(-n // 8), budget.sink + budget.recent
                own = budget.of(layer, decoder.head_offset + h).pages
                assert len(got) == min(pages, own + reserved)
            torch.testing.assert_close(out[r].float(), want.out, rtol=2e-2, atol=1e-2)


def test_each_row_keeps_its_number(artifact: Path) -> None:
    decoder = load(artifact, budget=TABLE, debug=True)
    check(decoder, TABLE, 3)
    check(decoder, Budget(table=[3, 11]), 3)  # by layer alone
    check(decoder, Budget(4), 3)  # and none at all


def test_heads_are_those_of_the_model(artifact: Path) -> None:
    check(load(artifact, budget=TABLE, head_offset=1, debug=True), TABLE, 2)


def test_a_ratio_counts_where_there_is_no_table(artifact: Path) -> None:
    decoder = load(artifact, budget=Budget(2, "1/2"))
    found, _ = judge(decoder, traced_flow(str(artifact)), [300], steps=1)
    assert next(iter(found.values())).selected == 19
    assert all(v.good("bf16") for v in found.values())


def test_the_verdict_knows_the_table(artifact: Path) -> None:
    decoder = load(artifact, budget=TABLE)
    found, _ = judge(decoder, traced_flow(str(artifact)), [3, 70, 300], steps=2, kv_heads=3)
    assert all(v.good("bf16") for v in found.values()), found
    decoder._steps._row_budgets[1].copy_(torch.tensor([1, 1, 1]))  # those of other rows are noticed
    found, _ = judge(load(artifact, budget=Budget(5)), traced_flow(str(artifact)), [300], steps=1)
    assert all(v.good("bf16") for v in found.values())


def test_the_numbers_of_another_head_are_noticed(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Budget.row
    decoder = load(artifact, budget=TABLE)
    monkeypatch.setattr(Budget, "row", lambda self, layer, head: right(self, layer, (head + 1) % 3))
    with pytest.raises(AssertionError):
        check(decoder, TABLE, 3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"table": [1, 2], "ratio": "1/4"}, "has the ratio 1/4 beside it"),
        ({"table": [1, [2, "x"]]}, "table[1] holds 'x'"),
        ({"table": [1, []]}, "table[1] is empty"),
        ({"table": "12"}, "table is '12'"),
        ({"table": [-1]}, "holds -1"),
        ({"table": [1, 2], "pages": 9}, "whose largest number is 2"),
        ({}, "neither pages, 0 or more, nor a table"),
    ],
)
def test_bad_tables(given: dict[str, Any], says: str) -> None:
    with pytest.raises(VortexError) as e:
        Budget(**given)
    assert e.value.code == "VX1020"
    assert says in e.value.render()


def test_a_table_that_does_not_go_with_artifact_or_model(artifact: Path, tmp_path: Path) -> None:
    plain = compile_flow("block_topk", spec=Spec(page_size=8, head_dim=64, group=2), out=tmp_path / "plain.vxa")
    assert plain.artifact is not None
    with pytest.raises(VortexError, match="--budget-table") as e:
        load(plain.artifact, budget=TABLE)
    assert e.value.code == "VX6001"
    decoder = load(artifact, budget=TABLE)
    k = torch.zeros(4, 4, 8, 64, dtype=torch.bfloat16)
    fields = {f.name: torch.zeros(4, 4, *f.tile, dtype=torch.bfloat16) for f in decoder.fields}
    for layer, heads, says in ((2, 3, "layer 2"), (0, 4, "head 3 of layer 0")):
        with pytest.raises(VortexError, match=says) as e:
            decoder.bind(
                layer, k[:, :heads], k[:, :heads].clone(), {n: x[:, :heads].clone() for n, x in fields.items()}
            )
        assert e.value.code == "VX1020"


def test_a_share_of_the_mass_has_to_be_bounded_by_itself() -> None:
    class Share(vortex.vFlow):
        bound: int | None = None

        def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
            return {"c": vortex.Field(spec.head_dim)}

        def forward_cache(self, page: Any) -> dict[str, Any]:
            return {"c": page.k.mean(0)}

        def forward_indexer(self, q: Any, cache: Any) -> Any:
            return vortex.topp((cache.c @ q.mean(0)).exp(), 0.9, pages=self.bound)

    with pytest.raises(VortexError, match="budgets of their own") as e:
        trace(Share, SPEC)
    assert e.value.code == "VX1070" and e.value.loc is not None
    Share.bound = 8
    trace(Share, SPEC)


def test_the_command_line_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "block_topk", "--budget-table", "--to", "page", "--no-dump"]) == 0
    out = capsys.readouterr().out
    assert "budget_table = true" in out and "flow.row_budget()" in out
