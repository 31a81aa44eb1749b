"""What ``vortex run`` finds where scores decide how many pages there are: right kernels pass, others do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from vortex.check.verdict import judge
from vortex.driver import compile_flow
from vortex.flow.selection import Selection
from vortex.flow.trace import trace
from vortex.runtime.decoder import load

SPEC = vortex.Spec(page_size=16, head_dim=32, group=2, dtype="f32")
LENGTHS = [5, 16 * 12 + 2, 16 * 62 + 2]


def flow_of(end: Callable[[Any], Selection]) -> vortex.vFlow:
    class MeanKeys(vortex.vFlow):
        """Selects by the mean keys, as ``end`` says."""

        def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
            return {"mean": vortex.Field(spec.head_dim)}

        def forward_cache(self, page: Any) -> dict[str, Any]:
            return {"mean": page.k.mean(0)}

        def forward_indexer(self, q: Any, cache: Any) -> Selection:
            return end(cache.mean @ q.T)  # [S, group]

    return MeanKeys()


def share(p: float) -> Callable[[Any], Selection]:
    return lambda dots: vortex.topp(dots.softmax(0).sum(-1), p)


def union(pages: int) -> Callable[[Any], Selection]:
    return lambda dots: vortex.union(vortex.topk(dots.amax(-1), pages=pages), share(0.5)(dots))


def policy(more: int) -> Callable[[Any], Selection]:
    """As many pages as are better than the mean, and more."""

    def end(dots: Any) -> Selection:
        score = dots.sum(-1)
        return vortex.topk(score, count=(score > score.mean(0)).sum(0, dtype=torch.int32) + more)

    return end


@pytest.mark.parametrize(("right", "wrong"), [(share(0.6), share(0.75)), (union(3), union(4)), (policy(0), policy(1))])
def test_kernels_of_another_selection_are_found(
    right: Callable[[Any], Selection], wrong: Callable[[Any], Selection], tmp_path: Path
) -> None:
    made = compile_flow(flow_of(right), spec=SPEC, out=tmp_path / "flow.vxa")
    assert made.artifact is not None
    decoder = load(made.artifact, target="cpu", budget=vortex.Budget(20), debug=True)
    for end, good in ((right, True), (wrong, False)):
        found, _ = judge(decoder, trace(flow_of(end), SPEC), LENGTHS)
        assert all(v.good("f32") for v in found.values()) == good, [v.why() for v in found.values()]
        assert good or any(v.differing for v in found.values())
