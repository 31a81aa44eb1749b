"""A flow whose scores are stored ready: what its ``select`` costs is the top-k and the lists it writes."""

from __future__ import annotations

from typing import Any

import vortex


@vortex.register("ready_scores")
class ReadyScores(vortex.vFlow):
    """Of each page one fp32 number, which the benchmark writes itself."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"score": vortex.Field(1, dtype="f32")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"score": page.k[0, :1]}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.score[:, 0])
