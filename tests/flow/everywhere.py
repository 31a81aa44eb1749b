"""A flow that reads parameters of every kind, the head and tables wherever it can."""

from __future__ import annotations

from typing import Any

import torch

import vortex

TABLE = (torch.arange(12.0).reshape(3, 4) % 5) - 2
BIAS = torch.arange(6.0).reshape(3, 2) - 3


@vortex.register("everywhere")
class Everywhere(vortex.vFlow):
    """``TABLE`` is by layer and head, ``BIAS`` by layer."""

    shift = vortex.Parameter("shift", (2,), "f32")

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        d = spec.head_dim
        self.mix = [vortex.Parameter(f"mix{i}", (d, d), per=per) for i, per in enumerate(("layer", "head"))]
        self.gain = vortex.Parameter("gain", (), "f16", per="head")
        return {"c": vortex.Field(d), "one": vortex.Field(dtype="f32")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"c": page.k.mean(0), "one": self.gain * page.v[0, 0] + vortex.head() + BIAS[vortex.layer(), 1]}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        by_layer, by_head = self.mix
        mixed = (q @ by_layer + q.abs() @ by_head).sum(0)
        score = cache.c @ mixed * TABLE[vortex.layer(), vortex.head()] + cache.one * self.shift[0]
        odd = (vortex.page_index() + vortex.head()) % 2
        return vortex.topk(score + self.shift[1] * odd + self.gain * cache.one.abs())
