"""Score pages by a small network of the mean key and the mean query."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("mlp_scorer")
class MlpScorer(vortex.vFlow):
    """Two layers: ``w2 . relu(Wk^T centroid + Wq^T q + b)``, one network for each layer of the model."""

    def __init__(self, hidden: int = 16) -> None:
        self.hidden = hidden

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        d, n = spec.head_dim, self.hidden
        self.wk = vortex.Parameter("wk", (d, n), per="layer")
        self.wq = vortex.Parameter("wq", (d, n), per="layer")
        self.b = vortex.Parameter("b", (n,), "f32", per="layer")
        self.w2 = vortex.Parameter("w2", (n,), "f32", per="layer")
        return {"centroid": vortex.Field(d)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"centroid": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        shared = q.mean(0) @ self.wq + self.b
        hidden = (cache.centroid @ self.wk + shared).relu()
        return vortex.topk(hidden @ self.w2)
