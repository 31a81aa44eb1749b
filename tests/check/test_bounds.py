"""``vortex check`` of flows whose pages are absurdly large: less is run, and it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from vortex.check import flow_check
from vortex.check.bounds import FEW, LENGTHS, compared_lengths, counted_tokens, page_numbers
from vortex.check.shapes import DENSE, LATENT, pairwise, spec_of
from vortex.cli.main import main
from vortex.driver import compile_flow
from vortex.flow.flow import find_flow, library_names
from vortex.flow.trace import trace
from vortex.spec import Spec
from vortex.targets.target import TARGETS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = Spec(page_size=8, head_dim=16, group=2, dtype="bf16")


class Large(vortex.vFlow):
    """``rows`` multiples of a page's mean key."""

    rows = 2048

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"big": vortex.Field(self.rows, spec.head_dim, dtype="f32")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"big": page.k.mean(0) * torch.linspace(-1, 1, self.rows)[:, None]}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.big @ q.mean(0)).amax(-1))


class TooLarge(Large):
    rows = 65536


@pytest.mark.parametrize("name", [*library_names(), str(EXAMPLES / "quest_then_mass.py"), str(EXAMPLES / "pyramid.py")])
def test_flows_that_people_write_are_run_in_full(name: str) -> None:
    flow, latent = find_flow(name), name.startswith("latent")
    spec = Spec.of_latent() if latent else Spec()
    assert counted_tokens(trace(flow, spec), spec, 131072) == 131072
    for choice in pairwise(LATENT if latent else DENSE):
        spec = spec_of(choice)
        if choice["target"] == "cpu" and spec.group <= flow_check.MOST_COMPARED:
            assert compared_lengths(trace(flow, spec), spec) == LENGTHS


def test_large_pages_are_fewer() -> None:
    module = trace(Large, Spec())
    assert page_numbers(module) > 2 * 2048 * 128
    assert FEW * 16 < counted_tokens(module, Spec(), 32768) < 32768
    few = compared_lengths(module, Spec())
    assert few[:2] == LENGTHS[:2] and FEW * 16 <= few[2] < LENGTHS[2]
    assert counted_tokens(trace(TooLarge, Spec()), Spec(), 32768) == 0
    assert compared_lengths(trace(TooLarge, Spec()), Spec()) == ()


def test_the_text_of_a_kernel_does_not_grow_with_a_page() -> None:
    """A prefetch for each of 16384 lines took the compiler minutes."""
    text = compile_flow(trace(Large, Spec()), targets=[TARGETS["cpu"]], to="tir").lowered[0].kernels["select"].text
    assert 0 < text.count("prefetch") < 10


def test_what_is_skipped_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from vortex.check import bounds

    monkeypatch.setattr(flow_check, "DENSE", {n: x[:1] for n, x in DENSE.items()})
    monkeypatch.setattr(flow_check, "COMPARED_PAGES", ())
    monkeypatch.setattr(bounds, "COMPARED", 1 << 16)
    monkeypatch.setattr(bounds, "COUNTED", 1 << 18)
    monkeypatch.setattr(Large, "rows", 512)
    report = flow_check.check_flow(Large, SMALL)
    assert [c.ok for c in report.compared] == [True]
    costs, long = report.skipped
    assert costs.startswith("costs of 32768 tokens: those of 128 tokens are shown, for the flow has")
    assert long.startswith(
        "long requests at group=2 page_size=8 head_dim=16 stored=bf16: requests of 5, 128, 128 tokens"
    )
    assert report.tokens == report.as_json()["cost"]["tokens"] == 128  # type: ignore[index]
    assert report.as_json()["skipped"] == report.skipped
    monkeypatch.setattr(bounds, "MOST", 1000)
    report = flow_check.check_flow(Large, SMALL)
    assert (report.kernels, report.compared, len(report.skipped)) == ([], [], 2)
    assert "none are shown" in report.skipped[0] and "nothing compared" in report.skipped[1]
    assert main(["check", "quest", "--tokens", "4096"]) == 0
    assert "skipped       costs of 4096 tokens: none are shown" in capsys.readouterr().out
