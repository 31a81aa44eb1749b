"""``TopK`` and ``Union`` of vortex_torch, against plain torch."""

from __future__ import annotations

from pathlib import Path

import torch

import vortex
from vortex.budget import Cap
from vortex.flow import oracle
from vortex.flow.flow import find_flow

FILE = Path(__file__).parent / "flows" / "two_choices.py"
SPEC = vortex.Spec(page_size=16, head_dim=16, group=4, dtype="f32")


def test_the_pages_of_both_are_kept() -> None:
    flow = find_flow(f"{FILE}:near_and_large")
    assert oracle.cap(flow, SPEC) == Cap(0, 5, always=True)
    q, k = torch.randn(4, 16), torch.randn(16 * 23, 1, 16)
    budget = vortex.Budget(1, sink=1, recent=2)
    (pages,) = oracle.step(flow, SPEC, q, k, k, budget).pages
    score = k[:, 0].view(23, 16, 16).mean(1)[1:21] @ q.mean(0)
    want = {*(score.topk(3).indices + 1).tolist(), *(score.abs().topk(2).indices + 1).tolist(), 0, 21, 22}
    assert pages == sorted(want)
