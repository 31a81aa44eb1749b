"""Fields of codes and bits on a GPU, under the emulator: ``append`` packs what the interpreter packs, byte for byte,
and ``select`` picks what the flow interpreter picks.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.batches import batch, copy, require_selections, summarise
from tests.cuda.harness import Kernels, dtype_of, loaded, lower, tensors
from tests.cuda.test_append import STEPS, interpret
from tests.narrow_flows import FLOWS
from vortex.budget import Budget
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.interpret_page import Batch
from vortex.passes.manager import PassContext, run_pipeline
from vortex.spec import Spec

SPEC = Spec(page_size=8, head_dim=64, group=2)
LENGTHS = (8 * 70 + 3, 0, 5, 8 * 33, 8 * 9 + 1)
FLOW_PASSES = "canonicalize,cse,reassociate,move-scales,canonicalize,cse,dce"
FEW = ("PerGroup", "Codes", "Bits")
MORE = [*FEW, *(pytest.param(n, marks=pytest.mark.full) for n in FLOWS if n not in FEW)]


@cache
def flow_of(name: str) -> Module:
    return trace(FLOWS[name], SPEC)


@cache
def kernels(name: str) -> Kernels:
    flow = run_pipeline(flow_of(name), FLOW_PASSES, PassContext(None))
    knobs = {"threads": 64, "in_flight": 2, "chip_words": 2048}
    program = lower(flow, append={"threads": 64}, plan={"threads": 64, "select_pages": 32}, select=knobs)
    return Kernels.of({name: program}, ["plan", "append", "select"])


def check_append(built: Kernels, name: str, b: Batch, seed: int) -> dict[str, np.ndarray]:
    """``append`` makes the fields that the interpreter makes: exactly so of seed 0, integers. Returns them."""
    program, found = built.programs[name], {}
    given, want = tensors(built, name, b), copy(b)
    built.run(name, given, ["append"], seed=seed)
    interpret(program, want)
    for d in program.declared("buffer"):
        if d.name in want.paged and d.attrs["role"] == "field":
            have = found[d.name] = loaded(given[f"field.{d.name}"], dtype_of(program, d.name))
            close = 0 if have.dtype == np.int32 or seed == 0 else 1e-2
            np.testing.assert_allclose(have, want.paged[d.name], rtol=close, err_msg=d.name)
    return found


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", MORE)
def test_append_packs_what_the_interpreter_packs(name: str, step: str) -> None:
    lengths, new = STEPS[step]
    for seed in (0, 1):
        check_append(kernels(name), name, batch(flow_of(name), lengths, new=new, seed=seed, integers=seed == 0), seed)


@pytest.mark.parametrize("name", MORE)
def test_select_reads_what_is_packed(name: str) -> None:
    built = kernels(name)
    for seed, slots in ((0, 1), (1, 8)):
        b = batch(flow_of(name), LENGTHS, budget=Budget(4), stored=True, seed=seed)
        summarise(flow_of(name), b)
        given = tensors(built, name, b, slots=slots)
        built.run(name, given, ["plan", "select"], seed=seed)
        require_selections(flow_of(name), b, given, name, seed)
