"""The examples of docs/flows.md run, and its flows trace and agree with their eager selves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vortex
from tests.flow.test_flows import data, traced_scores
from vortex.flow import flow, oracle

DOC = Path(__file__).parents[2] / "docs" / "flows.md"


def page(tmp_path: Path) -> Path:
    """The examples, in the order of the page."""
    path = tmp_path / "flows.py"
    path.write_text("\n".join(re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)))
    return path


def test_the_page_imports_what_it_uses(tmp_path: Path) -> None:
    """In a process of its own: whatever else was imported before is an attribute of ``vortex`` as well."""
    subprocess.run([sys.executable, page(tmp_path)], cwd=tmp_path, check=True)


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flow, "_REGISTRY", {})
    path = page(tmp_path)
    spec = vortex.Spec(page_size=16, head_dim=8, group=4)
    q, k, v = data(spec, 9)
    for name in ("range_bound", "recent_bias", "token_codes", "mass_share", "entropy_budget", "steady"):
        cls = flow.find_flow(f"{path}:{name}")
        want = oracle.score(cls, spec, q, oracle.summaries(cls, spec, k, v), layer=3)
        np.testing.assert_allclose(traced_scores(cls, spec, q, k, v, layer=3), want.numpy(), rtol=1e-4, atol=1e-4)
    two_steps = flow.find_flow(f"{path}:two_steps")
    tokens = torch.randn(200 * 16, 1, 8, generator=torch.Generator().manual_seed(0))
    assert len(oracle.step(two_steps, spec, q.float(), tokens, tokens, vortex.Budget(5)).pages[0]) == 8
    projected = flow.find_flow(f"{path}:projected")
    weights = {
        n: torch.randn(1, 2, 8, 16, generator=torch.Generator().manual_seed(i)) for i, n in enumerate(("wq", "wk"))
    }
    fields = oracle.summaries(projected, spec, k, v, 0, 1, weights)
    want = ((k.float().mean(1) @ weights["wk"][0, 1]).bfloat16().float() @ (q.float() @ weights["wq"][0, 1]).T).amax(-1)
    got = oracle.score(projected, spec, q, fields, head=1, parameters=weights)
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-4, atol=1e-4)
