"""Fields of codes and bits through a Decoder on a CPU: what append leaves and select picks is what eager torch does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kernels.test_flows import BUDGETS, check_step
from tests.narrow_flows import FLOWS
from vortex.driver import compile_flow
from vortex.runtime.decoder import load
from vortex.spec import Spec

SHAPES = [
    Spec(page_size=16, head_dim=64, group=4),
    Spec(page_size=8, head_dim=96, group=1, dtype="f32"),
    Spec(page_size=32, head_dim=80, group=3, dtype="f16"),
    Spec(page_size=16, head_dim=64, group=5, kv_dtype="fp8_e4m3"),
]
EXACT = ("Codes", "Bits", "BitsRead")
"""Flows whose scores of small integers are integers; the others multiply by scales."""


def check(name: str, spec: Spec, folder: Path, budgets: int) -> None:
    torch.manual_seed(0)
    made = compile_flow(FLOWS[name](), spec=spec, out=folder / f"{name}.vxa")
    assert made.artifact is not None
    decoder = load(made.artifact, budget=BUDGETS[0], debug=True)
    for i, budget in enumerate(BUDGETS[:budgets]):
        layout = ("HND", "NHD")[i % 2]
        check_step(FLOWS[name], decoder, budget, layout, integers=i == 0, exact=name in EXACT)


@pytest.mark.parametrize("name", FLOWS)
def test_narrow_fields(name: str, tmp_path: Path) -> None:
    check(name, SHAPES[list(FLOWS).index(name) % len(SHAPES)], tmp_path, 2)


@pytest.mark.full
@pytest.mark.parametrize("spec", SHAPES, ids=lambda s: f"g{s.group}-d{s.head_dim}-p{s.page_size}-{s.dtype}")
@pytest.mark.parametrize("name", FLOWS)
def test_narrow_fields_of_all_shapes(name: str, spec: Spec, tmp_path: Path) -> None:
    check(name, spec, tmp_path, 3)
