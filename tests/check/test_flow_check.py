"""``vortex check``: its shapes, its counted bytes, its remarks, its verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path

import pytest

import vortex
from vortex.budget import Budget
from vortex.check import flow_check
from vortex.check.shapes import DENSE, LATENT, pairwise, spec_of
from vortex.check.step_bytes import count_step
from vortex.cli.main import main
from vortex.compilation.lowered import Lowered
from vortex.driver import compile_flow
from vortex.errors import NO_CUDA
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.spec import Spec
from vortex.targets.target import TARGETS
from vortex.tune.choose import Chooser
from vortex.tune.layers import Layers
from vortex.tune.shapes import Shape


@pytest.mark.parametrize("settings", [DENSE, LATENT], ids=["dense", "latent"])
def test_any_two_values_meet(settings: dict[str, list[object]]) -> None:
    choices = pairwise(settings)
    assert len(choices) <= 36
    for a, b in combinations(settings, 2):
        assert {(c[a], c[b]) for c in choices} == set(product(settings[a], settings[b]))
    assert len({str((spec_of(c), c["target"])) for c in choices}) == len(choices)


def program(flow: type[vortex.vFlow], spec: Spec) -> Module:
    return compile_flow(trace(flow, spec), targets=[TARGETS["sm_90a"]], to="page").programs["sm_90a"]


class Plain(vortex.vFlow):
    """Everything a GPU likes."""

    def create_cache(self, spec):  # type: ignore[no-untyped-def,override]
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page):  # type: ignore[no-untyped-def,override]
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q, cache):  # type: ignore[no-untyped-def,override]
        return vortex.topk((q @ cache.mean.T).amax(0))


def test_bytes_of_a_step() -> None:
    """By hand: 256 pages, 3 reserved, a mean of 256 bytes each; 30 pages of K and V are attended to."""
    steps = {s.kernel: s for s in count_step(program(Plain, Spec()), Spec(), 4096, Budget(27))}
    assert steps["select"].buffers["mean"] == 253 * 256
    assert steps["attend"].buffers["k"] == steps["attend"].buffers["v"] == 30 * 16 * 256
    # a page of K is read, and a mean written, once in 16 steps
    assert steps["append"].buffers["mean"] == 256 / 16
    assert steps["append"].buffers["k"] == 256 + 16 * 256 / 16
    # four heads of queries in bf16 are read by select and attend
    assert steps["select"].buffers["q"] == 4 * 256
    # equal ones by name, whatever order a set of names has in this process
    for s in steps.values():
        assert list(s.buffers) == sorted(s.buffers, key=lambda b: (-s.buffers[b], b))


ODD_HEADS = """\
import torch, vortex

@vortex.register("halves")
class Halves(vortex.vFlow):
    def create_cache(self, spec):
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page):
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q, cache):
        pairs = q.reshape(2, -1, q.shape[-1])
        return vortex.topk((pairs.sum((0, 1)) * cache.mean).sum(-1))
"""


def test_a_flow_that_fails_at_some_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shapes are named, the line too; what the kernels compute is compared and counted all the same."""
    (tmp_path / "halves.py").write_text(ODD_HEADS)
    monkeypatch.setattr(flow_check, "COMPARED_PAGES", (8,))
    assert main(["check", str(tmp_path / "halves.py"), "--json", "--batch", "2", "--tokens", "1024"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    (one,) = [f for f in found["findings"] if f["severity"] == "error"]
    assert (one["rule"], one["line"]) == ("VX1005", 12)
    assert 0 < len(one["shapes"]) < len(found["shapes"])
    assert all("group=1 " in s or "group=5 " in s or "group=7 " in s for s in one["shapes"])
    assert found["compared"][0]["ok"] is True
    assert found["cost"]["kernels"][2]["kernel"] == "select"
    assert found["cost"]["launches"] == 2, "select, which takes in new tokens, and attend"
    assert found["cost"]["step_bytes"] > 0
    kernels = found["gpu"]["kernels"]
    assert set(kernels) == {"select", "append"}
    assert kernels["select"]["spills"] == 0
    assert kernels["select"]["registers"] > 16
    assert kernels["select"]["ctas"] >= 1
    assert found["gpu"]["why_not"] == ""
    assert found["contractions"] == [] or isinstance(found["contractions"][0]["tensor_cores"], bool)


def test_what_does_not_fit_into_registers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By nvcc, beside the comparison with the eager flow; without it the report says so."""
    found = {
        "select": {"spills": 484, "registers": 128, "ctas": 1, "threads": 256, "warps": 8, "bound_by": "registers"},
        "append": {"spills": 0, "registers": 40, "ctas": 9, "threads": 128, "warps": 36, "bound_by": "threads"},
    }
    spec = Spec(page_size=16, head_dim=64, group=2)
    monkeypatch.setattr(flow_check, "pairwise", lambda settings: [])
    monkeypatch.setattr(flow_check, "_compare", lambda report, flow, spec: None)
    monkeypatch.setattr(flow_check, "COMPARED_PAGES", ())
    monkeypatch.setattr(flow_check, "start_resources", lambda lowered, kinds: lambda: found)
    report = flow_check.check_flow(Plain, spec, tokens=4096, resources=True)
    assert [f.rule for f in report.findings] == ["spills", "occupancy"]
    assert "select has no room for 484 bytes in its 128 registers" in report.findings[0].message
    assert report.ok

    def without(lowered: object, kinds: object) -> None:
        raise NO_CUDA.at(why="it is not installed")

    monkeypatch.setattr(flow_check, "start_resources", without)
    report = flow_check.check_flow(Plain, spec, tokens=4096, resources=True)
    assert (report.findings, report.resources) == ([], {})
    assert "nvcc 12.8 or later is needed" in report.no_resources


@pytest.mark.parametrize(("batch", "cluster"), [(1, 8), (32, 1)])
def test_the_kernels_of_the_steps_asked_about_are_compiled(
    monkeypatch: pytest.MonkeyPatch, batch: int, cluster: int
) -> None:
    """Of a flow in two steps, clusters where rows are few."""
    monkeypatch.setattr(flow_check, "pairwise", lambda settings: [])
    monkeypatch.setattr(flow_check, "_compare", lambda report, flow, spec: None)
    monkeypatch.setattr(flow_check, "COMPARED_PAGES", ())
    compiled: list[object] = []

    def start(lowered: Lowered, kinds: object) -> Callable[[], dict[str, object]]:
        compiled.extend(k.schedule["cluster"] for name, k in lowered.kernels.items() if name.startswith("select"))
        return dict

    monkeypatch.setattr(flow_check, "start_resources", start)
    two_steps = find_flow(str(Path(__file__).resolve().parents[2] / "examples" / "quest_then_mass.py"))
    flow_check.check_flow(
        two_steps,
        Spec(),
        batch=batch,
        tokens=4096,
        resources=True,
        choose_for=lambda *shape: Chooser(Layers({}), Shape(*shape)),
    )
    assert compiled == [cluster]


def test_kernels_that_compute_something_else_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow is compiled as it is and compared with another eager code."""

    class Other(Plain):
        def forward_indexer(self, q, cache):  # type: ignore[no-untyped-def,override]
            return vortex.topk(-(q @ cache.mean.T).amax(0))

    real = flow_check.trace
    monkeypatch.setattr(flow_check, "trace", lambda flow, spec: real(Plain, spec))
    spec = Spec(page_size=16, head_dim=64)
    report = flow_check.Report("other", spec)
    flow_check._compare(report, Other, spec)
    (compared,) = report.compared
    assert not compared.ok
    assert compared.differing > 0


def test_flows_that_know_blocks_are_tried_in_blocks() -> None:
    """Three shapes more, one of them compared; a page fills in fewer steps than a block."""
    pyramid = find_flow(str(Path(__file__).resolve().parents[2] / "examples" / "pyramid.py"))
    report = flow_check.check_flow(pyramid, Spec(page_size=16, head_dim=64, group=2), tokens=4096)
    assert len([s for s in report.shapes if "block_size" in s]) == 3
    assert [c.shape for c in report.compared if "block_size" in c.shape]
    assert not [f for f in report.findings if f.severity == "error"], report.findings
    spec = Spec(page_size=64, block_size=16, head_dim=64, group=2)
    by_kernel = {s.kernel: s for s in count_step(program(pyramid, spec), spec, 64 * 32, Budget(8))}
    append = by_kernel["append"].buffers
    assert append["lo"] == 64 * 2 / 64
    assert append["keys"] == 16 * 64 / 2 / 16
    # a token, and its part of what is read of a block and of a page when these fill
    assert append["k"] == 64 * 2 + 16 * 64 * 2 / 16 + 64 * 64 * 2 / 64
    # of 30 pages between the first one and the last, all bounds, and the codes of their blocks
    assert by_kernel["select"].buffers["lo"] == 30 * 64 * 2
    assert by_kernel["select"].buffers["keys"] == 30 * 4 * 16 * 64 / 2
