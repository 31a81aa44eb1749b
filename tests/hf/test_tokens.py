"""Tokens that ``generate`` gives through a flow: those of transformers' own attention where all pages are kept, those
of the oracle where few are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vortex.hf
from tests.hf import reference
from tests.hf.models import CONFIGS, model, prompts
from vortex.budget import Budget
from vortex.runtime.transformers import attention, compiled

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PAGE = 8
FEW = Budget(pages=2, sink=1, recent=1)
BACKENDS = ("compiled", "eager")


def tokens(m: Any, given: dict[str, torch.Tensor], new: int = 12, **more: Any) -> torch.Tensor:
    torch.manual_seed(3)
    return m.generate(**given, max_new_tokens=new, **{"do_sample": False, **more})


@pytest.mark.parametrize("kind", [k if k == "llama" else pytest.param(k, marks=pytest.mark.full) for k in CONFIGS])
def test_with_all_pages_tokens_are_those_of_sdpa(kind: str) -> None:
    """8 prompts: four in a batch with padding, two alone, two in chunks."""
    vortex.hf.register("all", budget=1000)
    dense, sparse = model(kind), model(kind, "all")
    for given, more in (
        (prompts(70, 33, 90, 7), {}),
        (prompts(64, seed=1), {}),
        (prompts(41, seed=2), {"new": 30}),
        (prompts(100, 41, seed=3), {"prefill_chunk_size": 32}),
    ):
        assert torch.equal(tokens(sparse, given, **more), tokens(dense, given, **more))
    said = vortex.hf.report(sparse)
    assert said.steps == 3 * 11 + 29
    assert said.prompts == 3 + 4
    assert said.pages_read == 1 and not said.rebuilt
    assert len(said.sparse) == 2 and len(said.dense) == (2 if kind == "gemma3" else 0)


def test_with_all_pages_the_oracle_gives_the_tokens_of_sdpa() -> None:
    vortex.hf.register("all", budget=1000, backend="eager")
    given = prompts(40, 27)
    assert torch.equal(tokens(model(attention="all"), given, 4), tokens(model(), given, 4))


@pytest.mark.parametrize(
    ("flow", "backend"),
    [
        ("quest", "compiled"),
        ("quest", "eager"),
        ("mass", "compiled"),
        ("query_ema.py", "compiled"),
        ("query_ema.py", "eager"),
    ],
)
def test_with_few_pages_tokens_are_those_of_the_oracle(
    flow: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches with padding, chunks, sampling; memory that grows page by page."""
    monkeypatch.setattr(compiled, "SPARE", 1)
    where = str(EXAMPLES / flow) if flow.endswith(".py") else flow
    reference.register(where, FEW, PAGE)
    vortex.hf.register("few", flow=where, budget=FEW, page_size=PAGE, backend=backend)
    want, got, dense = model(attention="reference"), model(attention="few"), model()
    for given, more in (
        (prompts(60, 53), {"prefill_chunk_size": 32}),
        (prompts(46, seed=2), {"new": 20}),
        (prompts(59, seed=4), {"do_sample": True, "temperature": 0.7, "num_return_sequences": 2}),
    ):
        more = {"new": 6, **more}
        expected = tokens(want, given, **more)
        assert torch.equal(tokens(got, given, **more), expected)
        assert not torch.equal(tokens(dense, given, **more), expected), "all pages say the same: nothing is tested"
    assert vortex.hf.report(got).pages_read < 0.6


def test_a_page_that_is_shifted_by_padding_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the pages of padded requests begin at the first place of the tensors."""
    reference.register("quest", FEW, PAGE)
    vortex.hf.register("few", budget=FEW, page_size=PAGE)
    given = prompts(70, 53)
    want, got = model(attention="reference"), model(attention="few")
    found = attention.first_tokens
    monkeypatch.setattr(attention, "first_tokens", lambda *a: tuple(n - n % PAGE + PAGE // 2 for n in found(*a)))
    assert not torch.equal(tokens(got, given), tokens(want, given))


def test_a_model_says_its_flow_and_a_gemma_its_windows() -> None:
    vortex.hf.register("few", budget=1000)
    m = model("gemma3", "few", flow="mass", budget={"pages": 2, "recent": 1}, page_size=PAGE, backend="eager")
    reference.register("mass", FEW, PAGE)
    given = prompts(70, 53)
    assert torch.equal(tokens(m, given), tokens(model("gemma3", "reference"), given))
    said = vortex.hf.report(m)
    assert said.settings is not None and (said.settings.flow, said.settings.budget) == ("mass", FEW)
    assert said.sparse == (1, 3)
    assert "layer 0: sliding window of 24 tokens" in str(said)


def test_layers_that_are_to_be_dense_are() -> None:
    vortex.hf.register("few", budget=FEW, page_size=PAGE, dense_layers=[0, 1])
    given = prompts(70, 53)
    m = model(attention="few")
    assert torch.equal(tokens(m, given), tokens(model(), given))
    assert vortex.hf.report(m).dense == {0: "one of dense_layers", 1: "one of dense_layers"}


@pytest.mark.full
def test_half_precision_stays_near_sdpa() -> None:
    vortex.hf.register("all", budget=1000)
    for dtype in (torch.bfloat16, torch.float16):
        dense, sparse = model().to(dtype), model(attention="all").to(dtype)
        given = prompts(40, 27)
        outs = [
            m.generate(**given, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)
            for m in (dense, sparse)
        ]
        first, second = (torch.stack(o.logits[:2]).float() for o in outs)
        assert (first - second).abs().max() < 0.05 * first.abs().max()


def test_a_table_gives_each_head_its_own() -> None:
    budget = Budget(table=[[1, 3], [2, 0]], sink=1, recent=1)
    reference.register("quest", budget, PAGE)
    given = prompts(70, 53)
    want = tokens(model(attention="reference"), given)
    for backend in BACKENDS:
        vortex.hf.register("table", budget=budget, page_size=PAGE, backend=backend)
        assert torch.equal(tokens(model(attention="table"), given), want)
