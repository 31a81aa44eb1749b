"""Pages scored by their mean keys at the channels where the query is largest (SparQ, arXiv 2312.04985, on pages)."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("query_channels")
class QueryChannels(vortex.vFlow):
    """An eighth of the channels, chosen by each step's query, stands for the whole product."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.most = max(spec.head_dim // 8, 1)
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q = q.mean(0)
        chosen = q.abs().topk(self.most).indices
        return vortex.topk(cache.mean[:, chosen] @ q[chosen])
