"""Every torch function a flow can call, compiled: the kernels against torch."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from tests.codegen.harness import Compiled, compile_all
from tests.flow.op_cases import CASES, Case, tensors, types
from vortex.flow.arithmetic import Fp32Arithmetic
from vortex.flow.trace import trace_function

SHARD = 75
"""Cases per library: a test process compiles only the shards it runs."""


@cache
def compiled_shard(shard: int) -> Compiled:
    cases = list(enumerate(CASES))[shard * SHARD : (shard + 1) * SHARD]
    return compile_all({f"op{i}": trace_function(c.fn, types(c)) for i, c in cases})


@pytest.mark.parametrize(
    "number",
    [pytest.param(i, id=c.name, marks=pytest.mark.xdist_group(f"ops{i // SHARD}")) for i, c in enumerate(CASES)],
)
def test_compiled_equals_eager(number: int) -> None:
    case: Case = CASES[number]
    compiled = compiled_shard(number // SHARD)
    for pages in (0, 1, 2, 33):
        rows = [tensors(case, pages, seed) for seed in (1, 2)]
        inputs = {n: np.stack([row[n].numpy() for row in rows]) for n in case.inputs}
        got = compiled.run(f"op{number}", inputs, pages)
        if pages == 0:
            continue  # nothing is scored: that it ran is the test
        result = compiled.programs[f"op{number}"].functions["select"].ops[-1].operands[0]
        ragged = result.type.page_axis is not None
        for row, have in zip(rows, got, strict=True):
            with Fp32Arithmetic():
                want = case.fn(*row.values())
            if ragged:
                axis = _page_axis(case)
                want = torch.movedim(want, axis, 0)
            close = {"rtol": max(case.tolerance, 1e-4), "atol": max(case.tolerance, 1e-5), "equal_nan": True}
            torch.testing.assert_close(torch.from_numpy(have.astype(np.float64)), want.double(), **close)


def _page_axis(case: Case) -> int:
    f = trace_function(case.fn, types(case)).functions["index"]
    axis = f.ops[-1].operands[0].type.page_axis
    assert axis is not None
    return axis
