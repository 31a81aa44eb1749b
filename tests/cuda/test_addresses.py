"""Pools beyond 2^31 elements in each order of axes: kernels of a GPU under the emulator, on virtual memory."""

from __future__ import annotations

import mmap
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.batches import batch
from tests.cuda.attend_case import Case, source
from tests.cuda.harness import Kernels, lower, tensors
from tests.cuda.latent_case import LatentCase, kernel
from tests.cuda.latent_case import source as latent_source
from tests.emulation import Emulated
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.spec import Spec

NORESERVE = 0x4000
"""Linux' MAP_NORESERVE, which Python 3.11 has no name for."""
AXES = {"pages": 0, "heads": 1, "tokens": 2}
APART = 2**31 + 2**12
"""Elements between neighbours on the axis that lies outermost."""


def far(x: torch.Tensor, axis: int) -> torch.Tensor:
    """``x`` in memory whose outermost axis is ``axis``; what lies between its rows is never touched."""
    steps, inner = [0] * x.dim(), 1
    for other in reversed([a for a in range(x.dim()) if a != axis]):
        steps[other], inner = inner, inner * x.shape[other]
    steps[axis] = APART
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, steps, strict=True))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    memory = torch.frombuffer(mmap.mmap(-1, span * x.element_size(), flags=flags), dtype=x.dtype)
    return memory.as_strided(x.shape, steps).copy_(x)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_attend(axis: str, fp8: bool) -> None:
    """The same bits as over the same numbers in a small pool."""
    text = source(16, 64, 4, "bf16", (), "fp8_e4m3" if fp8 else "")
    case = Case.make(16, 64, 4, lengths=(16 * 5 + 3, 16 * 2), fp8=fp8)
    near = case.call_arguments(2)
    Emulated({"quest_attend": text}).call("quest_attend", *near.values())
    moved = {n: far(case.tensors[n], AXES[axis]) for n in ("k", "v")}
    given = replace(case, tensors={**case.tensors, **moved}).call_arguments(2)
    Emulated({"quest_attend": text}).call("quest_attend", *given.values())
    for name in ("out", "lse"):
        assert torch.equal(given[name], near[name])
    case.check(given)


@pytest.mark.parametrize("axis", ["pages", "tokens"])
def test_attend_over_latent_rows(axis: str) -> None:
    spec = Spec.of_latent("512+64", 16, page_size=16)
    made = kernel(spec)
    case = LatentCase.make(spec, (16 * 3 + 1, 16))
    near = case.call_arguments(made, 2)
    Emulated({made.symbol: latent_source(spec)}).call(made.symbol, *near.values())
    moved = {**case.tensors, "latent": far(case.tensors["latent"], AXES[axis])}
    given = replace(case, tensors=moved).call_arguments(made, 2)
    Emulated({made.symbol: latent_source(spec)}).call(made.symbol, *given.values())
    for name in ("out", "lse"):
        assert torch.equal(given[name], near[name])


@pytest.mark.parametrize("axis", AXES)
def test_append(axis: str) -> None:
    """New tokens land where they belong, and what is summarised is read from there."""
    flow = trace(find_flow("quest"), Spec(page_size=8, head_dim=64, group=2))
    kernels = Kernels.of({"quest": lower(flow, append={"threads": 64})}, ["append"])
    near = tensors(kernels, "quest", batch(flow, [17, 24, 9], new=[9, 1, 2], seed=1))
    given = {n: x.clone() if isinstance(x, torch.Tensor) else x for n, x in near.items()}
    given |= {n: far(near[n], AXES[axis]) for n in ("k", "v")}
    for arguments in (near, given):
        kernels.run("quest", arguments, ["append"])
    for name in ("k", "v", "field.lo", "field.hi"):
        have, want = (x[name].contiguous().view(torch.int16).numpy() for x in (given, near))
        np.testing.assert_array_equal(have, want, err_msg=name)
