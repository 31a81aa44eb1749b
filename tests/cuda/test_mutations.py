"""Every barrier and counter of the plan, append and select kernels is needed: without it the emulator reports a race
or a result is wrong.
"""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.batches import batch, oracle_selection, summarise
from tests.cuda.harness import Kernels, lower, tensors, with_constants
from tests.cuda.test_append import SPEC, flow_of, interpret
from tests.emulation import Emulated
from vortex.budget import Budget
from vortex.ir.interpret_page import Batch

STEPS = re.compile(
    r"^ *(tvm_builtin_cuda_cta_sync\(\);|tvm_builtin_cuda_warp_sync\(\);|arrivals_ptr\[.*\] = 0;)\n", re.MULTILINE
)
NAME = "gqa_block"


@cache
def whole() -> Kernels:
    knobs = {"threads": 64, "in_flight": 1, "chip_words": 1024}
    program = lower(flow_of(NAME), plan={"threads": 64, "select_pages": 32}, append={"threads": 64}, select=knobs)
    return Kernels.of({NAME: program})


def steps(seed: int) -> list[tuple[Batch, int]]:
    """Batches that go every way between them, each with the slots it is planned for."""
    flow, size = flow_of(NAME), SPEC.page_size
    # where the engine has stored the tokens, one CTA summarises all pages of a row
    prefill = batch(flow, [size * 70 + 3, 0, size * 9, size * 33], budget=Budget(4), stored=seed == 2, seed=seed)
    # more are wanted than the shortlist has room for, first of different scores and then of equal ones
    many = [batch(flow, [size * 140 + 3], heads=1, budget=Budget(70), stored=True, seed=seed) for _ in range(2)]
    many[1].paged["k"][:] = 1
    return [(prefill, 1 + 7 * (seed % 2)), (many[0], 4), (many[1], 1)]


def works(kernels: Kernels) -> bool:
    """Whether a prefill, twice over, comes out right in several orders of execution."""
    flow = flow_of(NAME)
    try:
        for at, (b, slots) in enumerate([step for seed in range(3) for step in steps(seed)]):
            given = tensors(kernels, NAME, b, slots=slots)
            given["arrivals"][:] = 9  # plan clears what an aborted step left behind
            interpret(kernels.programs[NAME], b)
            summarise(flow, b)
            for _ in range(2):
                kernels.run(NAME, given, ("plan", "append", "select"), seed=at)
            for r in range(b.requests):
                for h in range(b.heads):
                    have = given["pages"][r, h, : given["counts"][r, h]].tolist()
                    if have != oracle_selection(flow, b, r, h):
                        return False
            if given["arrivals"].any():
                return False
    except RuntimeError:
        return False
    return True


def test_it_works_as_it_is() -> None:
    assert works(whole())


@pytest.mark.full
def test_no_barrier_can_go() -> None:
    text = whole().text
    needless = []
    # in the emulator, as on the GPUs so far, a shuffle orders a warp's shared memory; CUDA does not promise it
    spared = 0
    for n, step in enumerate(STEPS.finditer(text)):
        mutant = text[: step.start()] + text[step.end() :]
        built = Kernels(whole().programs, whole().sources, mutant, Emulated(with_constants(mutant)))
        if works(built):
            if "warp_sync" in step.group(1):
                spared += 1
                continue
            needless.append((n, step.group(1), text[: step.start()].rsplit("\n", 4)[-4:]))
    assert not needless, needless
    assert spared <= 1
