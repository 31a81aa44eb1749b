"""Quest (arXiv 2406.10774) without the first features, those that rotate fastest under RoPE (arXiv 2606.06453)."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("masked_quest")
class MaskedQuest(vortex.vFlow):
    """Quest's bound summed over the features from the eighth on."""

    masked = 8

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"lo": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None])  # [S, group, head_dim]
        keep = torch.arange(q.shape[-1]) >= self.masked
        return vortex.topk(torch.where(keep, bound, 0.0).sum(-1).amax(-1))
