"""What stands beside AMASS and LOCKS: how they are loaded, judged and compared. Neither is needed here."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def test_a_package_is_imported_without_what_needs_an_engine(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = script("baselines.peer_packages")
    monkeypatch.setitem(packages.WHEELS, "pluggedpeer", "pluggedpeer.whl")
    with zipfile.ZipFile(tmp_path / "pluggedpeer.whl", "w") as archive:
        archive.writestr("pluggedpeer/__init__.py", "")
        archive.writestr("pluggedpeer/backend/__init__.py", "import an_engine_that_is_not_there")
        archive.writestr("pluggedpeer/backend/_runtime.py", "ready = True")
    monkeypatch.setattr(sys, "path", [*sys.path])
    packages.unpacked("pluggedpeer", tmp_path, tmp_path / "site")
    assert importlib.import_module("pluggedpeer.backend._runtime").ready


def test_extensions_compiled_ahead_are_found_by_their_source_and_flags(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils import cpp_extension

    packages = script("baselines.peer_packages")
    monkeypatch.setattr(cpp_extension, "load_inline", cpp_extension.load_inline)
    monkeypatch.setattr(packages, "loaded", lambda path, name: (path, name))
    load = packages.prebuilt(tmp_path)
    folder = tmp_path / packages.digest("source", ["-O3"])
    folder.mkdir()
    (folder / "one.so").touch()
    assert load("one", cuda_sources="source", extra_cuda_cflags=["-O3"]) == (folder / "one.so", "one")
    assert cpp_extension.load_inline is load
    with pytest.raises(RuntimeError, match="no GPU"):
        load("one", cuda_sources="source", extra_cuda_cflags=["-O2"])


class Torch:
    """Stands for an implementation: the pages of the largest mass, or what a test puts in their place."""

    def __init__(self, bench: Any, k: torch.Tensor, v: torch.Tensor, kept: int) -> None:
        self.steps = bench.Steps(2, len(k) // 2 * bench.PAGE - 5, len(k), 1, torch.device("cpu"))
        self.k, self.v, self.kept, self.bench, self.best = k, v, kept, bench, True

    def rows(self, r: int, h: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q = self.steps.q[0][r, h * self.bench.GROUP : (h + 1) * self.bench.GROUP].float()
        k, v = (
            x[self.steps.tables[0][r].long(), h].float().flatten(0, 1)[: self.steps.tokens] for x in (self.k, self.v)
        )
        return q @ k.T * self.bench.DIM**-0.5, v, torch.arange(len(k)) // self.bench.PAGE

    def selected(self, i: int, r: int, h: int) -> list[int]:
        logits, _, page = self.rows(r, h)
        mass = torch.zeros(self.steps.pages).index_add(0, page, logits.softmax(-1).mean(0))
        mass[[0, -2, -1]] = 2
        return mass.topk(self.kept, largest=self.best).indices.sort().values.tolist()

    def layer(self, i: int) -> None:
        for r in range(2):
            for h in range(self.bench.HKV):
                logits, v, page = self.rows(r, h)
                among = torch.isin(page, torch.tensor(self.selected(0, r, h)))
                out = logits[:, among].softmax(-1) @ v[among]
                self.steps.out[i][r, h * self.bench.GROUP : (h + 1) * self.bench.GROUP] = out.bfloat16()


def test_selections_and_outputs_are_judged(script: Callable[[str], ModuleType]) -> None:
    bench: Any = script("gpu_mass_peers")
    made = torch.Generator().manual_seed(0)
    k, v = (torch.randn(80, bench.HKV, bench.PAGE, bench.DIM, generator=made).bfloat16() for _ in range(2))
    mine = Torch(bench, k, v, 8)
    found = bench.quality(mine, k, v)
    assert found["right"] and found["pages_kept"] == [8]
    assert abs(found["mass_kept"] - found["mass_best"]) < 1e-3 and found["mass_random"] < 0.8 * found["mass_best"]
    mine.best = False
    assert not bench.quality(mine, k, v)["right"], "the pages of the least mass"
    mine.best = True
    mine.v = v * 1.1
    assert bench.quality(mine, k, v)["output_error"] > 0.05 and not bench.quality(mine, k, v)["right"]


def test_ratios_are_of_the_fastest_at_a_shape(script: Callable[[str], ModuleType]) -> None:
    bench: Any = script("gpu_mass_peers")
    assert bench.shapes("105:1x32763,8x32763 11:1x99") == [(105, 1, 32763), (105, 8, 32763), (11, 1, 99)]
    row = {"kept": 105, "requests": 1, "tokens": 9}
    rows = [
        {**row, "name": n, "ours": o, "layer_us": us} for n, o, us in (("a", True, 9), ("b", True, 4), ("c", False, 12))
    ]
    rows += [{**row, "kept": 11, "name": "a", "ours": True, "layer_us": 1}]
    (found,) = bench.ratios(rows)
    assert (found["ours"], found["theirs"], found["ratio"], found["of"]["a"]) == ("b", "c", 3, 2.25)


def test_rules_of_peers_keep_the_best_pages_of_normalised_heads(script: Callable[[str], ModuleType]) -> None:
    bench: Any = script("eval_mass_peers")
    masses = torch.tensor([[[0.0, 9, 1, 8, 2, 0, 0], [-50.0, -59, -51, -59, -50, -59, -59]]])  # [1 head, 2 queries, 7]
    peer = SimpleNamespace(masses=lambda layer, q, scale: masses)
    lane = bench.Kept(peer, 2)
    lane.plan(SimpleNamespace(pages=8, length=8 * bench.PAGE, first=True))
    read = lane.read(0, torch.zeros(1, 2, 4), None, 1.0)
    assert read.pages[0].tolist() == [True, True, False, False, True, False, True, True]


def test_codes_of_four_bits_come_apart(script: Callable[[str], ModuleType]) -> None:
    bench: Any = script("eval_mass_peers")
    numbers = torch.tensor([[-8, 7, -1, 3]], dtype=torch.int8)
    packed = (numbers[:, 0::2] & 15) | (numbers[:, 1::2] << 4)
    assert bench.nibbles(packed).tolist() == numbers.float().tolist()
