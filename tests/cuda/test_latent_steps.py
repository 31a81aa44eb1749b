"""``plan``, ``append`` and ``select`` of MLA flows under the emulator: the page interpreter's pools and selections."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.batches import batch, copy, oracle_selection, summarise
from tests.cuda.harness import Kernels, dtype_of, loaded, lower, tensors
from tests.cuda.test_append import interpret
from vortex.budget import Budget
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.interpret_page import Batch
from vortex.spec import Spec

SHAPES = {
    "h16": ("latent_topk", Spec.of_latent("64+64", 16, page_size=8)),
    "h20": ("latent_slim", Spec.of_latent("128+64", 20, page_size=16)),
    "h16_fp8": ("latent_topk", Spec.of_latent("64+64", 16, page_size=8, kv_dtype="fp8_e4m3")),
}
FULL = {
    "h20_wide": ("latent_topk", Spec.of_latent("512+64", 20, page_size=64)),
    "h128": ("latent_slim", Spec.of_latent("512+64", 128, page_size=16, dtype="f16")),
    "h128_wide": ("latent_topk", Spec.of_latent("512+64", 128, page_size=32)),
}


@cache
def flow_of(name: str) -> Module:
    flow, spec = (SHAPES | FULL)[name]
    return trace(find_flow(flow), spec)


@cache
def kernels(name: str) -> Kernels:
    return Kernels.of({name: lower(flow_of(name), append={"threads": 64}, plan={"threads": 64})})


@pytest.mark.parametrize("name", [*SHAPES, *(pytest.param(n, marks=pytest.mark.full) for n in FULL)])
def test_steps_equal_the_interpreter(name: str) -> None:
    flow, made = flow_of(name), kernels(name)
    size = int(flow.attrs["page_size"])
    lengths = [size * 40 + 3, 0, 1, size * 6, size * 11 - 1]
    for seed, new in ((0, None), (1, [1, 0, 1, 1, 1]), (2, [size, 0, 1, 5, size * 3])):
        scales = {"latent": 0.5} if name.endswith("fp8") else None
        b = batch(flow, lengths, heads=1, budget=Budget(4), new=new, seed=seed, integers=seed != 2, scales=scales)
        if new is not None:
            summarise_old(flow, b, new)
        given = tensors(made, name, b)
        made.run(name, given, ("plan", "append", "select"), seed=seed)
        program = made.programs[name]
        interpret(program, b)
        for d in program.declared("buffer"):
            if d.name in b.paged:
                key = d.name if d.attrs["role"] == "pool" else f"field.{d.name}"
                got = loaded(given[key], dtype_of(program, d.name))
                if d.attrs["role"] == "pool":
                    np.testing.assert_array_equal(got, b.paged[d.name])
                else:  # a sum taken in another order may round the other way
                    np.testing.assert_allclose(got, b.paged[d.name], rtol=2**-7, atol=1e-6)
                    b.paged[d.name] = got
        assert not given["arrivals"].any()
        for r in range(b.requests):
            pages = given["pages"][r, 0, : given["counts"][r, 0]].tolist()
            want = copy(b)
            assert pages == oracle_selection(flow, want, r, 0)


def summarise_old(flow: Module, b: Batch, new: list[int]) -> None:
    """Summaries of the pages that earlier steps filled."""
    now = b.lengths.copy()
    b.lengths = now - np.array(new, np.int32)
    summarise(flow, b)
    b.lengths = now
