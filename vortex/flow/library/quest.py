"""Pages scored by an upper bound of q.k over their keys (Quest, arXiv 2406.10774)."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("quest")
class Quest(vortex.vFlow):
    """The bound from the elementwise range of a page's keys; the head that bounds highest decides."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"lo": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)  # [S, group]
        return vortex.topk(bound.amax(-1))
