"""Flows that the generator found to be computed wrongly, made small."""

from __future__ import annotations

from typing import Any

import pytest

import vortex
from tests.generated.program import Line, Program, Var
from tests.generated.stages import PIPELINES, agree, interpreted, on_cpu
from vortex.errors import VortexError
from vortex.flow.trace import trace
from vortex.passes.manager import PassContext, run_pipeline
from vortex.targets.target import TARGETS

SPEC = vortex.Spec(page_size=4, head_dim=16, group=2)
MOST = Var("c0", (16,))
UNFUSED = 2
"""A seed for which on_cpu makes a kernel of each op."""


def flow(*lines: tuple[str, str], seed: int = 0, spec: vortex.Spec = SPEC) -> Program:
    """The flow of these lines of forward_indexer, given with the names they make; ``cache.f0`` is the largest key."""
    index = tuple(Line(Var(name), text) for name, text in lines)
    cache = (Line(MOST, "page.k.amax(0)"),)
    budget = vortex.Budget(2, sink=1, recent=1)
    return Program(seed, spec, budget, (), {"f0": "vortex.Field(16)"}, cache, {"f0": MOST}, index, index[-1].var)


def test_bools_between_kernels() -> None:
    """They are words of the workspace there; reading them died in the emitter."""
    program = flow(
        ("x0", "cache.f0.amax(-1) > q.amax()"), ("x1", "q.sum() > 0"),
        ("x2", "vortex.topk((x0 & x1).float() + cache.f0[:, 0])"), seed=UNFUSED,
    )  # fmt: skip
    agree([program], interpreted, on_cpu)


def test_latent_rows_that_no_gpu_kernel_takes() -> None:
    """The error advised to leave knobs out where none were given."""

    class Rows(vortex.vFlow):
        def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
            return {"top": vortex.Field(spec.head_dim)}

        def forward_cache(self, page: Any) -> dict[str, Any]:
            return {"top": page.latent.amax(0)}

        def forward_indexer(self, q: Any, cache: Any) -> Any:
            return vortex.topk((cache.top * q[0]).sum(-1))

    module = trace(Rows, vortex.Spec.of_latent("8+8", 2, page_size=4))
    with pytest.raises(VortexError, match=r"(?s)VX4006.*rows of 16 numbers.*multiples of 64.*compile for the CPU"):
        run_pipeline(module, PIPELINES[0], PassContext(TARGETS["sm_90a"]))
