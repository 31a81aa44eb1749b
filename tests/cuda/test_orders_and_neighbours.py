"""Gathers, orders and neighbouring pages in ``select`` under the emulator, in rows and in items: against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.cuda.test_random_flows import compile_all
from tests.flow.op_cases import CASES, tensors, types
from vortex.flow.arithmetic import Fp32Arithmetic
from vortex.flow.trace import trace_function

NAMES = [
    "index_tensor",
    "index_mask_two",
    "index_traced",
    "index_per_page",
    "gather",
    "sort_3",
    "topk_odd",
    "kthvalue",
    "median_odd",
    "argmax_odd",
    "quantile",
    "bucketize",
    "roll_pages",
    "roll_far",
    "shift_first",
    "shift_bool",
    "pad_edge",
    "windows",
    "max_pool_odd",
    "avg_pool",
    "conv_causal",
    "pool_known",
]
SAMPLE = ["index_traced", "topk_odd", "roll_far", "shift_first", "pad_edge"]


@pytest.mark.parametrize(
    ("names", "on_chip"),
    [
        pytest.param(SAMPLE, True, id="sample"),
        pytest.param(NAMES, True, id="on_chip", marks=pytest.mark.full),
        pytest.param(NAMES, False, id="in_workspace", marks=pytest.mark.full),
    ],
)
def test_gpu_kernels_equal_eager(names: list[str], on_chip: bool) -> None:
    cases = {c.name: c for c in CASES if c.name in names}
    assert len(cases) == len(names)
    compiled = compile_all({n: trace_function(c.fn, types(c)) for n, c in cases.items()}, 4096 if on_chip else 0)
    for name, case in cases.items():
        for pages in (1, 2, 33, 90):
            rows = [tensors(case, pages, seed) for seed in (1, 2)]
            inputs = {n: np.stack([row[n].numpy() for row in rows]) for n in case.inputs}
            for how in compiled if pages > 33 else compiled[:1]:
                result = how.programs[name].functions["select"].ops[-1].operands[0]
                ragged = result.type.page_axis is not None  # type: ignore[union-attr]
                for row, have in zip(rows, how.run(name, inputs, pages), strict=True):
                    with Fp32Arithmetic():
                        want = case.fn(*row.values())
                    if ragged:
                        traced = trace_function(case.fn, types(case)).functions["index"].ops[-1].operands[0]
                        want = torch.movedim(want, traced.type.page_axis, 0)  # type: ignore[union-attr]
                    close = {"rtol": 1e-4, "atol": 1e-4, "equal_nan": True}
                    torch.testing.assert_close(torch.from_numpy(have.astype(np.float64)), want.double(), **close)
