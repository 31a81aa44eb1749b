"""Mean keys of sub-pages of 16 tokens: LServe's hierarchy (arXiv 2502.14866) with centroids (arXiv 2606.06453)."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("lserve_centroid")
class LServeCentroid(vortex.vFlow):
    """The mean query head against the best mean key of a page's sub-pages."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.sub = min(16, spec.page_size)
        return {"mean": vortex.Field(spec.page_size // self.sub, spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.unflatten(0, (-1, self.sub)).mean(1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = torch.einsum("spd,d->sp", cache.mean, q.mean(0))
        return vortex.topk(score.amax(-1))
