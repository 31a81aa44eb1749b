"""Whole programs of flows nobody wrote, fused and not: kernels against the page interpreter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from tests.batches import batch
from tests.strategies import flows
from vortex.driver import compile_flow
from vortex.ir.interpret_page import Batch, run_program
from vortex.ir.parser import parse_module
from vortex.passes.manager import PassContext, run_pipeline
from vortex.runtime.decoder import Decoder, load

UNFUSED = "outline,expand-softmax,plan-memory,schedule"
SPLIT = "outline,expand-softmax,fuse{max-live=0},cse,dce,plan-memory,schedule"
LENGTHS = [3, 4, 9, 41, 130]


def on_kernels(decoder: Decoder, b: Batch, dtype: torch.dtype) -> tuple[list[list[int]], torch.Tensor]:
    """The pages and output of one step, run by the artifact over the same memory."""
    k, v = (torch.from_numpy(b.paged[n]).to(dtype) for n in ("k", "v"))
    fields = {f.name: torch.from_numpy(b.paged[f.name]).to(torch.float32) for f in decoder.fields}
    decoder.bind(0, k, v, fields)
    decoder.plan(torch.from_numpy(b.lengths), torch.from_numpy(b.page_table))
    fresh = (torch.from_numpy(b.tokens[n]).to(dtype) for n in ("k_new", "v_new"))
    decoder.append(0, *fresh, torch.from_numpy(b.loc), torch.from_numpy(b.row_offsets))
    q = torch.from_numpy(b.q).to(dtype)
    out = torch.full_like(q, float("nan"))
    decoder.decode(0, q, out=out, scale=b.scale)
    assert decoder.pages is not None
    assert decoder.counts is not None
    rows = [(r, h) for r in range(len(b.lengths)) for h in range(k.shape[1])]
    return [decoder.pages[r, h, : int(decoder.counts[r, h])].tolist() for r, h in rows], out.float()


def compare(text: str, folder: Path, passes: str | None) -> None:
    flow = parse_module(text)
    made = compile_flow(flow, passes=passes, out=folder / "random.vxa")
    assert made.artifact is not None
    b = batch(flow, LENGTHS, integers=True)
    from vortex.budget import Budget

    decoder = load(made.artifact, budget=Budget(2))
    twin = copy.deepcopy(b)
    want = expected(made, twin)
    pages, out = on_kernels(decoder, b, torch.bfloat16)
    assert pages == want, text
    reference = torch.from_numpy(np.asarray(twin.out))
    torch.testing.assert_close(out, reference, rtol=2e-2, atol=1e-2)


def expected(made: Any, b: Batch) -> list[list[int]]:
    """The pages kept by the interpreter running the same page program."""
    program = run_pipeline(made.programs["cpu"], "", PassContext(None))
    run_program(program, b)
    assert b.pages is not None
    assert b.counts is not None
    return [[int(p) for p in b.pages[r, h, : b.counts[r, h]]] for r, h in b.rows()]


@pytest.mark.parametrize("passes", [None, UNFUSED, SPLIT], ids=["fused", "unfused", "split"])
@pytest.mark.parametrize("examples", [3, pytest.param(25, marks=pytest.mark.full)])
def test_random_programs(passes: str | None, examples: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    # no shrinking: each try would compile a library
    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
    )
    @given(flows(polynomial=True, ranked=True, selections=True))
    def check(text: str) -> None:
        compare(text, tmp_path_factory.mktemp("random"), passes)

    check()
