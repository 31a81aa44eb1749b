"""Flows nobody wrote by hand: on each agree eager torch, the interpreters, CPU kernels and emulated GPU kernels."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.generated.grammar import generate
from tests.generated.program import Program
from tests.generated.stages import agree, interpreted, on_cpu

CHUNK, CHUNKS = 20, 25
"""Flows of a test, which share a library, and the tests: 500 flows. The first chunk is in the quick run."""
pytestmark = pytest.mark.filterwarnings("ignore::vortex.errors.VortexWarning")
ONCE = settings(
    max_examples=1, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True,
    phases=(Phase.generate,),
)  # fmt: skip


def flows(chunk: int, count: int) -> st.SearchStrategy[list[Program]]:
    """So many flows, others for each chunk. A seed is all that hypothesis draws: ``agree`` makes a flow that fails
    smaller by itself, for each try compiles it.
    """
    seeds = st.integers(chunk << 32, ((chunk + 1) << 32) - 1)
    return st.lists(seeds, min_size=count, max_size=count, unique=True).map(lambda every: [*map(generate, every)])


@pytest.mark.parametrize("chunk", [0, *(pytest.param(i, marks=pytest.mark.full) for i in range(1, CHUNKS))])
def test_generated_flows_agree(chunk: int) -> None:
    @settings(ONCE)
    @given(flows(chunk, CHUNK))
    def check(programs: Sequence[Program]) -> None:
        agree(programs, interpreted, on_cpu)

    check()
