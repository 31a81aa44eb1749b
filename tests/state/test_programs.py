"""State in page programs, fused, split and as outlined, against the flows' own code over many steps."""

from __future__ import annotations

import pytest

from tests.state.flows import FLOWS
from tests.state.traffic import Interpreted, Traffic, live
from vortex.budget import Budget
from vortex.passes.manager import PassContext, run_pipeline

PIPELINES = {
    "fused": "canonicalize,cse,reassociate,drop-monotone,dce,outline,expand-softmax,fuse,plan-memory,schedule",
    "split": "outline,expand-softmax,fuse{max-live=0},cse,dce,plan-memory,schedule",
    "outlined": "outline,expand-softmax,canonicalize,cse,dce,plan-memory,schedule",
}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", FLOWS)
def test_programs_keep_what_the_flow_keeps(name: str, pipeline: str) -> None:
    traffic = Traffic(FLOWS[name], Budget(3), seed=1)
    program = run_pipeline(traffic.module, PIPELINES[pipeline], PassContext(None))
    live(traffic, Interpreted(traffic, program))
