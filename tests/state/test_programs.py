"""State in page programs, fused, split and as outlined, against the flows' own code over many steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.state.flows import FLOWS
from tests.state.traffic import ABSENT, HEADS, SPEC, Interpreted, Traffic, live
from vortex.budget import Budget
from vortex.ir.core import Module, Op
from vortex.ir.dialects import page
from vortex.ir.interpret_page import Batch
from vortex.passes.manager import PassContext, run_pipeline

PIPELINES = {
    "fused": "canonicalize,cse,reassociate,drop-monotone,dce,outline,expand-softmax,fuse,plan-memory,schedule",
    "split": "outline,expand-softmax,fuse{max-live=0},cse,dce,plan-memory,schedule",
    "outlined": "outline,expand-softmax,canonicalize,cse,dce,plan-memory,schedule",
}


@pytest.mark.parametrize("pipeline", ["fused", *(pytest.param(p, marks=pytest.mark.full) for p in list(PIPELINES)[1:])])
@pytest.mark.parametrize("name", FLOWS)
def test_programs_keep_what_the_flow_keeps(name: str, pipeline: str) -> None:
    traffic = Traffic(FLOWS[name], Budget(3), seed=1)
    program = run_pipeline(traffic.module, PIPELINES[pipeline], PassContext(None))
    live(traffic, Interpreted(traffic, program))


@pytest.mark.parametrize("pipeline", list(PIPELINES)[1:])
def test_what_state_was_is_read_before_it_is_written(pipeline: str) -> None:
    test_programs_keep_what_the_flow_keeps("swap", pipeline)


@pytest.mark.parametrize("name", FLOWS)
def test_rows_of_few_candidates(name: str) -> None:
    """From none on, 1, 2, .. and more than 32 candidates, all of which are scored."""
    traffic = Traffic(FLOWS[name], Budget(0, sink=1, recent=1), seed=7)
    live(traffic, Interpreted(traffic, fused(traffic)), steps=12, long=32)


def fused(traffic: Traffic) -> Module:
    return run_pipeline(traffic.module, PIPELINES["fused"], PassContext(None))


def test_bytes_of_state_are_counted() -> None:
    traffic = Traffic(FLOWS["ema"], Budget(3))
    program = fused(traffic)
    runner = Interpreted(traffic, program)
    traffic.join("a")
    runner.append(traffic.batch({"a": 15 * SPEC.page_size - 1}))
    runner.decode(traffic.batch({"a": 1, ABSENT: 1}))
    candidates, query = 15 - 3, 32 * 4
    select = runner.counts[-1].kernels["select"]
    assert (select["ema"].read, select["ema"].written) == (HEADS * candidates * 4, HEADS * candidates * 4)
    assert (select["query"].read, select["query"].written) == (HEADS * query, HEADS * query)
    append = runner.counts[-1].kernels["append"]
    assert (append["ema"].written, append["query"].written) == (HEADS * 4, 0)


def without(program: Module, wrong: Callable[[Op], bool]) -> Module:
    """The program without some of its ops."""
    for f in program.functions.values():
        f.ops = [o for o in f.ops if not wrong(o)]
    return program


FAULTS: dict[str, Callable[[Op], bool]] = {
    "a page's state is another's": lambda o: isinstance(o, page.Reset) and o.buffer == "ema",
    "a request's state is another's": lambda o: isinstance(o, page.Reset) and o.buffer == "query",
    "a page's state stays": lambda o: isinstance(o, page.Store) and o.buffer == "ema",
    "a request's state stays": lambda o: isinstance(o, page.Store) and o.buffer == "query",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_stale_state_is_found(fault: str) -> None:
    traffic = Traffic(FLOWS["ema"], Budget(3), seed=1)
    program = without(fused(traffic), FAULTS[fault])
    with pytest.raises(AssertionError):
        live(traffic, Interpreted(traffic, program))


class Forgetful(Interpreted):
    """Is not told whose first append to a slot follows on pages of others."""

    def append(self, b: Batch) -> None:
        super().append(replace(b, fresh=np.zeros_like(b.fresh)))


@pytest.mark.parametrize("name", ["ema", "only"])
def test_a_shared_prefix_is_not_shared_state(name: str) -> None:
    traffic = Traffic(FLOWS[name], Budget(3), seed=1)
    with pytest.raises(AssertionError):
        live(traffic, Forgetful(traffic, fused(traffic)))
