"""Where it goes what a flow prints."""

from __future__ import annotations

import pytest
import torch

import vortex
from vortex import prints


class Talkative(vortex.vFlow):
    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: vortex.Page) -> dict[str, torch.Tensor]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: torch.Tensor, cache: vortex.Cache) -> vortex.Selection:
        print("here", type(q).__name__)
        return vortex.topk(cache.mean @ q[0])


@pytest.mark.parametrize("command", [False, True])
def test_a_flow_prints_to_stdout_but_under_a_command(capsys: pytest.CaptureFixture[str], command: bool) -> None:
    q, k = torch.randn(2, 16), torch.randn(256, 1, 16)
    if command:
        with prints.aside():
            vortex.decode(Talkative(), q[None], k[None], k[None], budget=2)
    else:
        vortex.decode(Talkative(), q[None], k[None], k[None], budget=2)
    said = capsys.readouterr()
    there, other = (said.err, said.out) if command else (said.out, said.err)
    assert "here Tensor" in there and "here vTensor" in there
    assert "here" not in other
