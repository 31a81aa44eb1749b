"""``append`` for GPUs under the emulator: pools and summaries are those of the page interpreter, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from tests.batches import batch, copy
from tests.cuda.harness import Kernels, dtype_of, loaded, lower, tensors
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.interpret_page import Batch, run_program
from vortex.spec import Spec

FLOWS = ("quest", "venergy_gated", "lserve_centroid")
SPEC = Spec(page_size=8, head_dim=64, group=2)


FP8 = "venergy_gated_fp8"
SCALES = {"k": 0.375, "v": 0.01}
"""Of the pools in fp8: some values are clamped."""


@cache
def flow_of(name: str) -> Module:
    return trace(find_flow(name.removesuffix("_fp8")), replace(SPEC, kv_dtype="fp8_e4m3") if name == FP8 else SPEC)


@cache
def kernels() -> Kernels:
    return Kernels.of({n: lower(flow_of(n), append={"threads": 64}) for n in (*FLOWS, FP8)}, ["append"])


def interpret(program: Module, b: Batch) -> None:
    """The program's append kernel by the page interpreter."""
    alone = Module("page", program.name, dict(program.attrs), dict(program.decls))
    alone.define(program.functions["append"])
    run_program(alone, b)


STEPS = {
    "prefill": ([17, 0, 5, 16, 9], [17, 0, 5, 16, 9]),
    "decode": ([17, 24, 5, 16, 9], [1, 1, 1, 1, 1]),
    "chunks": ([40, 0, 8, 33, 9], [9, 0, 8, 3, 2]),
}


@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", [*FLOWS, FP8])
def test_append_equals_the_interpreter(name: str, step: str, stored: bool) -> None:
    lengths, new = STEPS[step]
    for seed in (0, 1, 2):
        scales = SCALES if name == FP8 else None
        b = batch(flow_of(name), lengths, new=new, stored=stored, seed=seed, integers=seed != 2, scales=scales)
        want = copy(b)
        given = tensors(kernels(), name, b)
        kernels().run(name, given, ["append"], seed=seed)
        program = kernels().programs[name]
        interpret(program, want)
        for d in program.declared("buffer"):
            if d.name in want.paged:
                key = d.name if d.attrs["role"] == "pool" else f"field.{d.name}"
                have = loaded(given[key], dtype_of(program, d.name))
                np.testing.assert_allclose(
                    have, want.paged[d.name], rtol=0 if seed != 2 and name != FP8 else 1e-2, err_msg=d.name
                )


def test_padded_tokens_and_requests_are_left_alone() -> None:
    b = batch(flow_of("quest"), [17, 0, 9], new=[1, 0, 1])
    b.row_offsets = np.array([0, 1, 2, 3], np.int32)  # the padded request counts a token
    for name, x in b.tokens.items():
        b.tokens[name] = np.insert(x, 1, np.nan, axis=0)
    b.loc = np.array([b.loc[0], -1, -1], np.int64)
    given = tensors(kernels(), "quest", b)
    before = given["k"].view(torch.int16).clone()
    kernels().run("quest", given, ["append"])
    changed = (before != given["k"].view(torch.int16)).nonzero()
    assert {int(i[0]) for i in changed} == {int(b.loc[0]) // 8}
