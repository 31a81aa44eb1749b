"""Fields of pages beside fields of their blocks in GPU kernels under the emulator: as the page interpreter has them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.batches import batch, copy
from tests.cuda.harness import Kernels, dtype_of, loaded, lower, tensors
from tests.cuda.test_append import interpret
from tests.flow.pages_and_blocks import FLOWS
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.spec import Spec

SPECS = {
    "Pyramid": Spec(page_size=16, block_size=4, head_dim=32, group=2, dtype="bf16"),
    "Exact": Spec(page_size=24, block_size=8, head_dim=64, group=2, dtype="bf16", kv_dtype="fp8_e4m3"),
    "Beside": Spec(page_size=32, block_size=16, head_dim=64, group=4, dtype="f16"),
    "Wide": Spec(page_size=32, block_size=8, head_dim=64, group=4, dtype="bf16"),
}
SCALES = {"k": 0.5, "v": 2.0}


@cache
def flow_of(name: str) -> Module:
    return trace(FLOWS[name], SPECS[name])


@cache
def kernels() -> Kernels:
    return Kernels.of({n: lower(flow_of(n), append={"threads": 64}) for n in FLOWS}, ["append"])


def steps(page: int, block: int) -> dict[str, tuple[list[int], list[int]]]:
    """Lengths, and how many of the tokens are new: pages that fill at once, block by block, and by one token."""
    lengths = [2 * page + block + 1, 0, block, 4 * page, 2 * page, page + block, page - 1]
    return {
        "prefill": (lengths, lengths),
        "decode": (lengths, [1, 0, 1, 1, 1, 1, 1]),
        "chunks": (lengths, [page + 3, 0, block - 1, 2 * page + 1, block, 2, 1]),
    }


def check_append(made: Kernels, name: str, step: str, seed: int, *, stored: bool) -> None:
    spec = SPECS[name]
    lengths, new = steps(spec.page_size, spec.block_size)[step]
    scales = SCALES if spec.scaled else None
    b = batch(flow_of(name), lengths, new=new, stored=stored, seed=seed, scales=scales)
    want = copy(b)
    given = tensors(made, name, b)
    made.run(name, given, ["append"], seed=seed)
    program = made.programs[name]
    interpret(program, want)
    for d in program.declared("buffer"):
        if d.name in want.paged:
            key = d.name if d.attrs["role"] == "pool" else f"field.{d.name}"
            have = loaded(given[key], dtype_of(program, d.name))
            np.testing.assert_array_equal(have, want.paged[d.name], err_msg=d.name)


@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored"])
@pytest.mark.parametrize("step", ["prefill", "decode", "chunks"])
@pytest.mark.parametrize("name", FLOWS)
def test_append_equals_the_interpreter(name: str, step: str, stored: bool) -> None:
    for seed in (0, 1):
        check_append(kernels(), name, step, seed, stored=stored)
