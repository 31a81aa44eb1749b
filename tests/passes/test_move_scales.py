"""Scales move to where they cost least, told by counting the multiplications, and nothing but rounding changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.flow.test_flows import data
from tests.narrow_flows import FLOWS
from vortex.check.reference import selected, summarise
from vortex.flow.trace import trace
from vortex.ir.core import Module, Value
from vortex.ir.dialects import flow
from vortex.ir.types import Sym, TensorType
from vortex.passes.manager import DEFAULT_PIPELINE, PassContext, run_pipeline
from vortex.spec import Spec

PAGE, DIM, GROUP = 16, 64, 4
SPEC = Spec(page_size=PAGE, head_dim=DIM, group=GROUP)
BEFORE = "canonicalize,cse,dce"
AFTER = "canonicalize,cse,move-scales,canonicalize,cse,dce"


def size(v: Value) -> int:
    assert isinstance(v.type, TensorType)
    return v.type.numel if v.type.page_axis is not None else 0


def multiplications(m: Module) -> int:
    """Of each page, in ``@index``."""
    total = 0
    for o in m.functions["index"].ops:
        if isinstance(o, flow.Mul):
            total += size(o.value)
        elif isinstance(o, flow.Dot):
            la, lb, _ = o.letters()
            dims = dict(zip(la + lb, o.a.type.shape + o.b.type.shape, strict=True))
            total += math.prod(d for d in dims.values() if not isinstance(d, Sym))
    return total


DOT = PAGE * DIM * GROUP
COUNTS = {
    "PerToken": (PAGE * DIM, PAGE * GROUP),
    "PerPage": (PAGE * DIM, PAGE * GROUP),
    "PerChannel": (PAGE * DIM, DIM * GROUP),
    "Transposed": (PAGE * DIM, PAGE * GROUP),
    "PerGroup": (PAGE * DIM, PAGE * DIM // 16 * GROUP),
}
"""Beside the contraction itself: numbers times scales before, and after."""


@pytest.mark.parametrize("name", COUNTS)
def test_multiplications(name: str) -> None:
    m = trace(FLOWS[name], SPEC)
    before, after = (multiplications(run_pipeline(m, p, PassContext())) for p in (BEFORE, AFTER))
    extra, less = COUNTS[name]
    assert (before, after) == (DOT + extra, DOT + min(extra, less))


def test_scales_stay_where_moving_costs_more() -> None:
    many = Spec(page_size=PAGE, head_dim=DIM, group=4 * PAGE)
    m = trace(FLOWS["PerChannel"], many)
    before, after = (multiplications(run_pipeline(m, p, PassContext())) for p in (BEFORE, AFTER))
    assert before == after


@pytest.mark.parametrize("name", [n for n in COUNTS if n != "Bounds"])
def test_contractions_see_codes(name: str) -> None:
    m = run_pipeline(trace(FLOWS[name], SPEC), DEFAULT_PIPELINE["flow"].removesuffix(",outline"), PassContext())
    dots = [o for o in m.functions["index"].ops if isinstance(o, flow.Dot)]
    assert any(v.type.dtype.name in ("int8", "int4") for o in dots for v in o.operands)


@pytest.mark.parametrize("name", FLOWS)
def test_scores_change_by_rounding_alone(name: str) -> None:
    torch.manual_seed(0)
    q, k, v = data(SPEC, 9)
    m = trace(FLOWS[name], SPEC)
    moved = run_pipeline(m, AFTER, PassContext())
    fields = summarise(m, k.float().numpy(), v.float().numpy())
    want, have = (selected(x, q.float().numpy(), fields, 1).score for x in (m, moved))
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-4)
