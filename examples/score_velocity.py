"""What a page scores beyond half of what it scored in the step before."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("score_velocity")
class ScoreVelocity(vortex.vFlow):
    """Pages whose scores rise go before pages whose scores fall."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "last": vortex.Field(dtype="f32", state="page")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = cache.mean @ q.mean(0)  # [S]
        return vortex.topk(score - 0.5 * cache.last), {"last": score}
