"""Mean-key scores averaged over steps: state for each page that halves with every step."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("running_avg_block_sparse")
class RunningAverage(vortex.vFlow):
    """A page's score decays by a half each step and takes in what the page scores now."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "running": vortex.Field(dtype="f32", state="page")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        running = 0.5 * cache.running + cache.mean @ q.mean(0)  # [S]
        return vortex.topk(running), {"running": running}
