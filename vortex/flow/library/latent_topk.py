"""MLA pages scored by the mean of their latent rows (arXiv 2606.06453): rotary part included."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("latent_topk")
class LatentTopK(vortex.vFlow):
    """The logit of the mean latent row, summed over the heads that share the page."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.latent.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.mean @ q.mean(0))
