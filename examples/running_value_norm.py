"""Mean-key scores times a moving average of the size of a page's values."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("running_value_norm")
class RunningValueNorm(vortex.vFlow):
    """A page has to be a candidate for a while before the size of its values counts."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        running = vortex.Field(dtype="f32", state="page")
        return {"mean": vortex.Field(spec.head_dim), "size": vortex.Field(dtype="f32"), "running": running}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0), "size": page.v.norm(dim=-1).mean()}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        running = 0.95 * cache.running + 0.05 * cache.size  # [S]
        return vortex.topk(cache.mean @ q.mean(0) * running), {"running": running}
