"""MLA pages scored by an upper bound of the logit over their latent rows (Quest, arXiv 2406.10774, on latent rows)."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("latent_quest")
class LatentQuest(vortex.vFlow):
    """The bound from the elementwise range of a page's latent rows, for the mean of the heads that share the page."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"lo": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.latent.amin(0), "hi": page.latent.amax(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q = q.mean(0)
        return vortex.topk(torch.maximum(q * cache.lo, q * cache.hi).sum(-1))
