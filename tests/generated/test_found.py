"""Flows that the generator found to be computed wrongly, made small."""

from __future__ import annotations

import vortex
from tests.generated.program import Line, Program, Var
from tests.generated.stages import agree, interpreted, on_cpu

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
