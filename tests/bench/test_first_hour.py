"""bench/gpu_first_hour.py: what is wrong is said, and all of it runs on a CPU with kernels from a cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vortex.api import decode as api

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return __import__("gpu_first_hour")


def test_kernels_are_judged(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    eager, found = api._eager, {"decode": {}}
    case = script.Case("block_topk", "bf16")

    def judged(after: Any) -> list[str]:
        monkeypatch.setattr(api, "_compiled", lambda step: after(eager(step)))
        made: list[str] = script.decodes(case, tmp_path, "cpu", found)
        return made

    assert judged(lambda x: x) == []
    assert any("out by" in w for w in judged(lambda x: replace(x, out=x.out * 1.1)))
    assert any("lse by" in w for w in judged(lambda x: replace(x, lse=x.lse + 1)))
    first = [[[*range(len(head))] for head in row] for row in eager_pages(script, case)]
    assert any("pages that rounding" in w for w in judged(lambda x: replace(x, pages=first)))


def eager_pages(script: ModuleType, case: Any) -> Any:
    return script.Tensors(case, "cpu").decode(case.flow, 8, details=True).pages


@pytest.mark.full
def test_all_of_it_runs_without_a_compiler(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    pytest.importorskip("transformers")
    files, root = tmp_path / "files", BENCH.parent
    paths = {"PYTHONPATH": f"{root}:{BENCH}"}
    stage = [sys.executable, str(BENCH / "stage_first_hour.py"), "--out", str(files), "--target", "cpu"]
    subprocess.run(stage, check=True, env={**os.environ, **paths}, cwd=tmp_path)
    # other tools there: what they compiled is found by all the rest
    there = {**os.environ, **paths, "XDG_CACHE_HOME": str(files / "cache"), "CC": "another", "HF_HUB_OFFLINE": "1"}
    run = "import runpy, sys; sys.modules['tvm'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
    words = [
        str(BENCH / "gpu_first_hour.py"),
        "--device",
        "cpu",
        "--files",
        str(files),
        "--out",
        str(tmp_path / "o.json"),
    ]
    done = subprocess.run([sys.executable, "-c", run, *words], env=there, cwd=tmp_path)
    found = json.loads((tmp_path / "o.json").read_text())
    assert done.returncode == 0, found["wrong"]
    assert len(found["decode"]) == 4
    assert {*found["trace"]} == {"run", "run_mass", "eval"}
