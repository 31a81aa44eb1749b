"""Pages scored by the attention a query head would pay to their mean keys (arXiv 2606.06453)."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("gqa_block")
class GQABlock(vortex.vFlow):
    """A softmax over pages for each query head, then the head that wants the page most."""

    scale = 0.09  # close to 1 / sqrt(128)

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        logits = cache.mean @ q.T  # [S, group]
        weight = torch.softmax(logits * self.scale, dim=0)
        return vortex.topk(weight.amax(-1))
