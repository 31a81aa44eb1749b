"""Mean-key scores gated by the length of a page's values (arXiv 2606.06453)."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("venergy_gated")
class VEnergyGated(vortex.vFlow):
    """A page counts by how well its keys match and how much its values weigh."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "energy": vortex.Field()}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0), "energy": page.v.norm(dim=-1).mean()}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.mean @ q.mean(0) * cache.energy)
