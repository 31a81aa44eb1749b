"""Mean-key scores and how much they vary from step to step: two moving averages for each page."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("cross_step_variance")
class CrossStepVariance(vortex.vFlow):
    """Half the variance of a page's score over the last steps is added to its score."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        average = vortex.Field(dtype="f32", state="page")
        return {"mean": vortex.Field(spec.head_dim), "x": average, "x2": average}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = cache.mean @ q.mean(0)  # [S]
        x, x2 = 0.7 * cache.x + 0.3 * score, 0.7 * cache.x2 + 0.3 * score * score
        return vortex.topk(score + 0.5 * (x2 - x * x)), {"x": x, "x2": x2}
