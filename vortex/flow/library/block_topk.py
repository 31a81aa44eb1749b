"""Pages scored by their mean key: block-sparse attention with top-k pages (Kinetics, arXiv 2506.05333)."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("block_topk")
class BlockTopK(vortex.vFlow):
    """The mean query head against the mean key of a page."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.mean @ q.mean(0))
