"""Flows of two and three steps as compiled kernels, in every layout of the pools, against the oracle."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from tests.flow.shortlists import FLOWS
from tests.kernels import test_flows
from vortex.budget import Budget
from vortex.driver import compile_flow
from vortex.errors import VortexWarning
from vortex.runtime.decoder import load
from vortex.spec import Spec

SPECS = {
    "TwoSteps": Spec(page_size=16, head_dim=64, group=4, dtype="bf16"),
    "Linear": Spec(page_size=8, head_dim=32, group=2, dtype="bf16", kv_dtype="fp8_e4m3"),
    "ThreeSteps": Spec(page_size=4, head_dim=16, group=1, dtype="f32"),
    "Both": Spec(page_size=32, head_dim=80, group=4, dtype="f16"),
}
BUDGETS = (Budget(3, sink=1, recent=2), Budget(2, "1/3", sink=2, recent=1), Budget(0, sink=0, recent=1))
"""The second one wants more pages of a long row than any of the shortlists has."""


@pytest.mark.parametrize("flow", FLOWS)
def test_steps(flow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made = compile_flow(FLOWS[flow], spec=SPECS[flow], out=tmp_path / "flow.vxa")
    assert made.artifact is not None
    decoder = load(made.artifact, budget=BUDGETS[0], debug=True)
    monkeypatch.setattr(test_flows, "find_flow", FLOWS.__getitem__)
    for i, budget in enumerate(BUDGETS):
        integers = flow != "TwoSteps" and i == 0
        test_flows.check_step(flow, decoder, budget, ("HND", "NHD")[i % 2], integers=integers)


def test_a_budget_of_more_pages_than_the_shortlist_is_warned_of(tmp_path: Path) -> None:
    made = compile_flow(FLOWS["TwoSteps"], spec=SPECS["TwoSteps"], out=tmp_path / "flow.vxa")
    assert made.artifact is not None
    with pytest.warns(VortexWarning, match="scores 6 pages, and TwoSteps chooses them from a shortlist of 5"):
        load(made.artifact, budget=Budget(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error", VortexWarning)
        load(made.artifact, budget=Budget(5))
