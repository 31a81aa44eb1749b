"""``--backend compiled`` and ``eager`` choose the same pages, by the rule of design 3, and give the same answers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.evaluate.prompts import prompts
from vortex.evaluate.flow_rules import CompiledLane
from vortex.evaluate.models import Model
from vortex.evaluate.rules import Read
from vortex.evaluate.tasks import DEFAULT, find_task

FULL = pytest.mark.full
ROOT = Path(__file__).resolve().parents[2]
FLOWS = {"quest": "quest", "mass": "mass", "quest_then_mass": str(ROOT / "examples" / "quest_then_mass.py")}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return import_module("gpu_eval")


@FULL
def test_on_the_default_tasks(smollm2: Model, bench: ModuleType, tmp_path: Path) -> None:
    """The real model, a prompt of each of the default tasks."""
    given = [p for task in DEFAULT for p in find_task(task).make(smollm2.tokenizer, 1024, 1, seed=0)]
    found = bench.compared(smollm2, given, FLOWS, (4, 16), tmp_path)
    assert bench.wrong(found) == []
    assert len(found) == len(given) * 6
    # a step of the answer at least, in each layer and head, and some prompts that are answered
    assert all(x["rows"] >= 2 * smollm2.layers * smollm2.kv_heads for x in found)
    assert sum(x["scores"][0] for x in found) >= 2


@pytest.mark.parametrize("flow", [f if f == "quest" else pytest.param(f, marks=FULL) for f in FLOWS])
def test_another_page_is_seen(
    flow: str, tiny: Model, bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: in one layer, a page that was chosen is said to be another one."""
    given = tiny, prompts(tiny, 250, 1), {flow: FLOWS[flow]}, (2,), tmp_path
    assert bench.wrong(bench.compared(*given)) == []
    right = CompiledLane.read

    def read(self: CompiledLane, layer: int, q: torch.Tensor, mass: torch.Tensor | None, scale: float) -> Read:
        made = right(self, layer, q, mass, scale)
        if layer == 1:
            made.pages[0, 1:-2] = made.pages[0, 1:-2].roll(1)
        return made

    monkeypatch.setattr(CompiledLane, "read", read)
    found = bench.compared(*given)
    assert found[0]["unexplained_pages"] and "not by rounding" in bench.wrong(found)[0]
