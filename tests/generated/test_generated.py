"""Flows nobody wrote by hand: on each agree eager torch, the interpreters, CPU kernels and emulated GPU kernels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.generated.grammar import generate
from tests.generated.program import Program
from tests.generated.stages import agree, interpreted, on_cpu, on_gpu
from tests.generated.world import World
from vortex.ir.core import Op
from vortex.ir.dialects import flow

CHUNKS = [10, *[20] * 25]
"""Flows of each test, which share a library. The first is in the quick run. The full one interprets all 500 others and
compiles 160 of them; all are compiled before a release.
"""
GPU_EACH = int(os.environ.get("VORTEX_EMULATE_EACH", "10"))
"""One flow in so many runs under the emulator too: its kernels take as long to compile as all else together. With
VORTEX_EMULATE_EACH=1 all do, which takes nine minutes more on two cores.
"""
COUNTED = 600
MADE_BY_PASSES = {"flow.softmax_sum"}
KINDS = [
    "topk(", "count=", "tolerance=", "topp(", "union(", "shortlist(", "Parameter(", "vortex.head()", "vortex.layer()",
    "vortex.page_index()", "vortex.page_count()", "vortex.block_index()", 'per="page"', 'per="block"', "same_bits(",
    'state="page"', 'state="request"', 'dtype="int4"', 'dtype="int8"', 'dtype="uint1"', 'dtype="fp8_e4m3"', "scale=",
    "block_size=", "kv_lora_rank=", "kv_dtype=", "Budget(table=", "ratio=", "cache.k", "cache.v", "cache.latent",
    "page.k", "page.v", "page.latent", ", torch.nan,", ", torch.inf,", ", -torch.inf,",
]  # fmt: skip
"""What one flow in a hundred has at least."""
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


@pytest.mark.parametrize(
    ("chunk", "compiled"),
    [
        (0, True),
        *(pytest.param(i, True, marks=pytest.mark.full) for i in range(1, 9)),
        *(pytest.param(i, False, marks=pytest.mark.full) for i in range(9, len(CHUNKS))),
        *(pytest.param(i, True, marks=[pytest.mark.full, pytest.mark.release]) for i in range(9, len(CHUNKS))),
    ],
)
def test_generated_flows_agree(chunk: int, compiled: bool) -> None:
    @settings(ONCE)
    @given(flows(chunk, CHUNKS[chunk]))
    def check(programs: Sequence[Program]) -> None:
        if not compiled:
            agree(programs, interpreted)
            return
        agree(programs, interpreted, on_cpu)
        agree(programs[::GPU_EACH], on_gpu)

    check()


@pytest.mark.full
def test_every_op_and_kind_of_flow_is_generated() -> None:
    ops, text = Counter[str](), ""
    for program in map(generate, range(COUNTED)):
        text += program.text
        ops.update({o.name for f in World(program).module.functions.values() for o in f.ops})
    every = {k.name for k in vars(flow).values() if isinstance(k, type) and issubclass(k, Op) and "name" in vars(k)}
    assert every - set(ops) == MADE_BY_PASSES, ops
    assert [kind for kind in KINDS if text.count(kind) < COUNTED / 100] == []
