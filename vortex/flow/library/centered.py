"""Mean-key scores less their mean over pages (arXiv 2606.06453): a reduction across pages before the choice."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("centered")
class Centered(vortex.vFlow):
    """How far a page's score stands above the row's mean."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = (cache.mean @ q.T).mean(-1)  # [S]
        return vortex.topk(score - score.mean(0))
