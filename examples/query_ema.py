"""Mean keys against a moving average of the queries, which the request keeps."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("query_ema")
class QueryEma(vortex.vFlow):
    """Steps that look at something else do not change the pages at once."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "query": vortex.Field(spec.head_dim, dtype="f32", state="request")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        query = 0.7 * cache.query + 0.3 * q.mean(0)  # [D]
        return vortex.topk(cache.mean @ query), {"query": query}
