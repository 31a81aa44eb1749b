"""The Triton baselines without a GPU: compiled for sm_90 without spills, and right under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
BENCH = Path(__file__).resolve().parents[2] / "bench"
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET", "0") == "1", reason="nothing is compiled under the interpreter"
)


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def attend_tensors() -> dict[str, object]:
    tensors = {"q": empty(4, 32, 128), "out": empty(4, 32, 128), "lse": empty(4, 32, dtype=torch.float32), "scale": 0.1}
    tensors |= {name: empty(64, 8, 16, 128) for name in ("k", "v")}
    shapes = {"page_table": (4, 64), "pages": (4, 8, 32), "counts": (4, 8), "lengths": (4,)}
    return tensors | {name: empty(*shape, dtype=torch.int32) for name, shape in shapes.items()}


def select_tensors(columns: int) -> dict[str, object]:
    tensors = {"q": empty(4, 32, 128), "scores": empty(4, 8, columns, dtype=torch.float32)}
    tensors |= {f"field.{name}": empty(64, 8, 128) for name in ("mean", "lo", "hi")}
    shapes = {"page_table": (4, columns), "pages": (4, 8, 32), "counts": (4, 8), "plan": (4, 4)}
    return tensors | {name: empty(*shape, dtype=torch.int32) for name, shape in shapes.items()}


def test_attend_compiles() -> None:
    from baselines import triton_attend
    from baselines.offline import compile_for, resources

    given = attend_tensors()
    for config in (triton_attend.Config(16, 2, 9, True), triton_attend.Config(64, 4, 4, True, 8)):
        made = triton_attend.Attend(given, config)
        compiled = compile_for(triton_attend.attend_kernel, *made.arguments(given)[1:])
        found = resources(compiled)
        assert found["local"] == 0, found
        assert "cp.async" in compiled.asm["ptx"]
    assert resources(compile_for(triton_attend.merge_kernel, *made.merge_arguments(given)[1:]))["local"] == 0


@pytest.mark.parametrize("kind", ["centroid", "quest"])
def test_select_compiles(kind: str) -> None:
    from baselines import triton_select, triton_topk
    from baselines.offline import compile_for, resources

    given = select_tensors(2048)
    for config in (triton_select.Config(64, 4, 1, 4, 3, True), triton_select.Config(8, 1, 8, 4, 1, False)):
        arguments = triton_select.Score(kind, config).arguments(given)[1:]
        assert resources(compile_for(triton_select.score_kernel, *arguments))["local"] == 0
    assert resources(compile_for(triton_topk.topk_kernel, *triton_topk.arguments(given)[1:]))["local"] == 0


def test_right_under_the_interpreter() -> None:
    command = [sys.executable, str(BENCH / "baselines" / "check.py"), "--device", "cpu", "--quick"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
